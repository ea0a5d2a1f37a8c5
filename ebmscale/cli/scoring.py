"""The command that scores images by a model."""

from typing import TYPE_CHECKING

import click

from ebmscale.address import Address
from ebmscale.cli.group import cli, console, example, seed_option
from ebmscale.cli.measuring import device_option
from ebmscale.cli.outputs import ADDRESS, OutputFile, output_file, output_folder
from ebmscale.cli.progress import Steps
from ebmscale.cli.workers import worker_options, workers_of
from ebmscale.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from ebmscale.report.score_page import Against


@cli.command(epilog=example("ebmscale score runs/photos data/new --out scores.csv --against data/photos"))
@click.argument("run", type=ADDRESS)
@click.argument("url", type=ADDRESS)
@click.option(
    "--out",
    required=True,
    type=ADDRESS,
    help="FILE.parquet or FILE.csv, with a row for each image: key, label, percentile, scores. A name without ending "
    "is a folder of Parquet files. A page with the same name and the ending .html comes beside it.",
)
@click.option(
    "--against",
    metavar="URL",
    type=ADDRESS,
    help="A packed set of normal images: how well the scores tell the images from these (AUROC and AUPRC).",
)
@worker_options
@seed_option
@device_option
def score(
    run: str,
    url: str,
    out: Address,
    against: str | None,
    num_workers: int | None,
    ray_address: str | None,
    seed: int,
    device: str,
) -> None:
    """Score the images of the packed set at URL by RUN's model.

    The higher the score, the less likely the image. The first score of a row is the one to use; its percentile is among
    the scores of RUN's held-out images. The page beside the file shows the most and the least likely images.
    """
    from ebmscale.evaluate.anomaly import MAIN_SCORE  # noqa: PLC0415 (commands import what they use)
    from ebmscale.evaluate.images import open_all_images  # noqa: PLC0415
    from ebmscale.evaluate.score_file import FORMATS, join_parts, read_scores, write_scores  # noqa: PLC0415
    from ebmscale.evaluate.score_parts import ScoreJob  # noqa: PLC0415
    from ebmscale.evaluate.scoring import against_normal, held_out_scores, normal_scores  # noqa: PLC0415
    from ebmscale.model.load import open_model  # noqa: PLC0415
    from ebmscale.report.score_page import Against, score_page  # noqa: PLC0415
    from ebmscale.runtime.part_job import Workers  # noqa: PLC0415
    from ebmscale.runtime.parts import run_parts  # noqa: PLC0415
    from ebmscale.storage import Storage  # noqa: PLC0415
    from ebmscale.world import World, device_of  # noqa: PLC0415

    place, world = device_of(device), World.from_environment("cpu")
    workers, is_folder = workers_of(num_workers, ray_address, device), not out.suffix
    in_parts = workers is not None or is_folder
    if world.size > 1 and in_parts:
        raise ConfigError("Under torchrun the ranks share the work: leave out --workers, and name a file by --out.")
    target = None if not world.is_first else _page_of(out) if is_folder else output_file(out, FORMATS, (".html",))
    model = open_model(Storage.at(run)).to(place)
    with Steps("scoring", "images", shown=world.is_first) as show:
        images = open_all_images(model, Storage.at(url), world, show)
        job = None
        if in_parts:
            folder = output_folder(out.real if is_folder else f"{out.real}.parts", "table of scores")
            job = ScoreJob.of(Storage.at(run), model, images, seed, device, folder)
        show.say("held-out images of the run")
        reference = held_out_scores(model, seed, world, show)
        normal = None
        if against is not None:
            show.say(str(Address(against)))
            normal = normal_scores(model, Storage.at(against), seed, world, show)
        show.say(str(Address(url)))
        if job is None:
            scores = write_scores(model, images, out, seed, reference)
        else:
            job.keep_reference(reference)
            run_parts(job, workers or Workers(), show)
            scores = read_scores(job.parts(), () if normal is not None else (MAIN_SCORE,))
            if not is_folder:
                join_parts(job.parts(), out)
                job.remove()
    if target is None:
        return
    compared = None
    if normal is not None and against is not None:
        compared = Against(str(Address(against)), normal[MAIN_SCORE], against_normal(scores, normal))
    target.publish(score_page(model, images, scores, reference, compared).encode(), ".html")
    console.print(f"{len(images):,} images scored: {out}")
    _say(scores, reference, compared)
    console.print(f"page     {target.folder.url_of(target.beside('.html'))}")


def _page_of(folder: Address) -> OutputFile:
    """The page beside a folder of Parquet files."""
    if not folder.real.strip("./- "):
        raise ConfigError("--out must name a file, or a new folder.")
    return output_file(f"{folder.real}.html", (".html",))


def _say(scores: dict[str, "Tensor"], reference: "Tensor | None", compared: "Against | None") -> None:
    """Says what the scores mean."""
    from ebmscale.evaluate.anomaly import MAIN_SCORE  # noqa: PLC0415
    from ebmscale.evaluate.scoring import UNLIKELY, unlikely_share  # noqa: PLC0415
    from ebmscale.evaluate.verdicts import of_metric  # noqa: PLC0415

    console.print(f"score    {MAIN_SCORE}: the higher, the less likely")
    if reference is None:
        console.print("note     no percentiles, as the run's own images cannot be read from here")
    else:
        share = unlikely_share(scores[MAIN_SCORE], reference)
        console.print(f"unlikely {share:.1%} of the images are above the {UNLIKELY}th percentile of held-out images")
    if compared is not None:
        for one in scores:
            found = {measure: compared.values[f"{measure.lower()}_{one}"] for measure in ("AUROC", "AUPRC")}
            console.print(f"{one:<14} " + ", ".join(f"{measure} {value:.3f}" for measure, value in found.items()))
        for verdict in of_metric("anomaly", compared.values):
            console.print(str(verdict))
