"""The command that turns samples into latents."""

import click

from ebmscale.cli.group import cli, console, example, seed_option
from ebmscale.cli.measuring import device_option
from ebmscale.cli.outputs import ADDRESS, output_folder
from ebmscale.cli.progress import Steps
from ebmscale.cli.workers import worker_options, workers_of


@cli.command(epilog=example("ebmscale encode runs/photos data/photos data/photos-z --workers 2"))
@click.argument("model", metavar="RUN_OR_CONFIG", type=ADDRESS)
@click.argument("url", metavar="DATA", type=ADDRESS)
@click.argument("out", type=ADDRESS)
@worker_options
@seed_option
@device_option
def encode(
    model: str, url: str, out: str, num_workers: int | None, ray_address: str | None, seed: int, device: str
) -> None:
    """Write the latents of the packed set DATA to OUT.

    OUT becomes a packed set that `ebmscale train` takes. RUN_OR_CONFIG is a run, an export, or a configuration file
    whose encoder has weights (`model.encoder.weights`). An encoder's posteriors are written as means and standard
    deviations. Those that chains sample are written as draws.
    """
    from ebmscale.config import load_config  # noqa: PLC0415 (commands import what they use)
    from ebmscale.evaluate.encode_parts import EncodeJob, coder_of_config, coder_of_run  # noqa: PLC0415
    from ebmscale.runtime.part_job import Workers  # noqa: PLC0415
    from ebmscale.runtime.parts import run_parts  # noqa: PLC0415
    from ebmscale.storage import Storage  # noqa: PLC0415

    is_config = model.endswith((".yaml", ".yml")) or model.startswith("preset:")
    coder = (
        coder_of_config(load_config(model).with_absolute_addresses()) if is_config else coder_of_run(Storage.at(model))
    )
    target = output_folder(out, "packed set")
    job = EncodeJob.of(coder, Storage.at(url), target, seed, device)
    with Steps("encoding", "shards") as show:
        run_parts(job, workers_of(num_workers, ray_address, device) or Workers(), show)
    made = job.join()
    console.print(f"{target.url}: {made.summary()}")
