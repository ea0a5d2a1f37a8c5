"""Processor seconds to LEBM's quality: of its plain fp32 loop, and of `ebmscale train`.

    python tools/bench/quality.py --plain-s 400 --seed 0 posterior.num_steps=20 posterior.step_size=0.1
    python tools/bench/quality.py --samples 100000 --seed 0 stages.start_samples=36000

Both use the settings of a comparison (configs/compare/mnist_joint.yaml). LEBM's loop (tools/bench/lebm.py) uses those of
row `lebm`, with images in memory and the generator's rate on the run's cosine, until it has used its processor seconds.
`ebmscale train` uses those of row `adaptive`, as a process whose seconds count from its start. Both models are measured
in the same way on the same images: mean squared error of reconstructions by the model's own posterior chain, Frechet
distance of samples by its own prior chain. Every run adds a line of JSON to --out; --table prints these lines.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from ebmscale.compare.rows import make_jobs
from ebmscale.config import RunConfig
from ebmscale.data.chunks import iter_chunks
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import select
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.errors import ConfigError
from ebmscale.evaluate.features import Features, open_features
from ebmscale.evaluate.metrics import evaluate
from ebmscale.model.image_model import ImageModel
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.load import open_model
from ebmscale.model.pixels import to_pixels
from ebmscale.model.run_folder import run_storage
from ebmscale.storage import Storage
from tools.bench.lebm import LebmLoop, Setting


class Ratio(nn.Module):
    """The log ratio f(z) = -E(z), for the prior."""

    def __init__(self, energy: nn.Module) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, z: Tensor) -> Tensor:
        """The log ratio (N,) at latents z (N, Z)."""
        return -self.energy(z)


def setting_of(config: RunConfig, shape: tuple[int, int, int]) -> Setting:
    """The settings of LEBM's loop that match a run's."""
    model, train = config.model, config.train
    if model.sigma == "auto":
        raise ConfigError("LEBM's loop has a fixed sigma; give model.sigma a number.")
    return Setting(
        *(shape, model.generator.form, model.latent_dim, model.generator.width, model.sigma, model.ratio.hidden),
        *(config.posterior.num_steps, config.posterior.step_size, config.prior.num_steps, config.prior.step_size),
        *(train.generator.rate, train.ratio.rate),
    )


def train_plain(config: RunConfig, plain_s: float) -> tuple[LatentModel, int, float]:
    """Runs LEBM's loop for `plain_s` processor seconds; returns the model, the samples seen and the seconds used."""
    data = Storage.at(config.data.url)
    manifest = Manifest.load(data)
    chosen = select(manifest, "train", config.data.validation_fraction, config.data.held_out)
    images = torch.cat([chunk.images for chunk in iter_chunks(data, manifest, chosen, 0, 1)])
    channels, height, width = manifest.image_shape
    shape = (channels, height, width)
    torch.manual_seed(config.run.seed)
    loop = LebmLoop(setting_of(config, shape), config.run.seed)
    batch, seen, begin = config.train.batch_size, 0, time.process_time()
    order = torch.randperm(len(images))
    while (done := (time.process_time() - begin) / plain_s) < 1:
        loop.adam_g.param_groups[0]["lr"] = config.train.generator.rate_at(done)
        if len(order) < batch:
            order = torch.randperm(len(images))
        loop.update(to_pixels(images[order[:batch]]))
        order, seen = order[batch:], seen + batch
    used = time.process_time() - begin
    ratio = Ratio(loop.energy)
    empty = RatioSequence(StandardNormal(config.model.latent_dim), ratio)
    prior = empty.append(dict(ratio.state_dict()))
    networks = ImageModel(loop.generator, None).requires_grad_(False)
    return LatentModel(config, networks, prior, shape, seen), seen, used


def train_ours(config: RunConfig, folder: Path) -> tuple[LatentModel, int, float]:
    """Runs `ebmscale train` in its own process; returns the model, the samples seen and its processor seconds."""
    file = folder / f"{config.run.name}.yaml"
    file.write_text(config.dump())
    before = _children_s()
    subprocess.run([sys.executable, "-m", "ebmscale", "train", str(file)], check=True, stdout=subprocess.DEVNULL)
    used = _children_s() - before
    model = open_model(run_storage(config))
    return model, model.samples_seen, used


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(
    trained: tuple[LatentModel, int, float], config: RunConfig, features: Features, split: str, num: int
) -> dict[str, Any]:
    """The cost of the training, and the model's error and distance."""
    model, samples, used = trained
    data = Storage.at(config.data.url)
    found = evaluate(model, data, ["reconstruction"], split=split)
    found |= evaluate(model, data, ["frechet"], features=features, split=split, num_samples=num)
    return {"cpu_s": used, "samples": samples, "mse": found["mse"], "fd": found[features.name]}


def table(lines: list[dict[str, Any]]) -> str:
    """A line for every run, and the least seconds of ours at equal or better quality over those of LEBM's loop."""
    rows = [f"{'loop':8} seed {'samples':>9} {'CPU s':>7} {'MSE':>7} {'FD':>7}"]
    rows += ["{name:8} {seed:4} {samples:9,} {cpu_s:7.1f} {mse:7.4f} {fd:7.1f}".format(**line) for line in lines]
    for plain in (line for line in lines if line["name"] == "LEBM"):
        as_good = [
            line["cpu_s"]
            for line in lines
            if line["name"] == "ours"
            and (line["seed"], line["split"]) == (plain["seed"], plain["split"])
            and line["mse"] <= plain["mse"]
            and line["fd"] <= plain["fd"]
        ]
        found = f"{min(as_good) / plain['cpu_s']:.3f}" if as_good else "not reached"
        rows.append(
            f"seed {plain['seed']}, {plain['cpu_s']:.0f} s of LEBM: ours over LEBM's {found} (aim: at most 0.2)"
        )
    return "\n".join(rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparison", default=str(ROOT / "configs/compare/mnist_joint.yaml"))
    parser.add_argument("--features", default="features/mnist")
    parser.add_argument("--plain-s", type=float, help="train LEBM's loop for so many processor seconds")
    parser.add_argument("--samples", type=int, help="train ours on so many samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", default="test")
    parser.add_argument("--num-samples", type=int, default=5000, help="of the Frechet distance")
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the lines of --out")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="other settings")
    given = parser.parse_args()
    if given.table:
        print(table([json.loads(line) for line in given.out.read_text().splitlines()]))
        return
    torch.set_num_threads(1)
    features = open_features(given.features)
    name, row = ("LEBM", "lebm") if given.plain_s else ("ours", "adaptive")
    with tempfile.TemporaryDirectory(prefix="ebmscale-bench-") as folder:
        overrides = [*given.overrides, *([f"train.max_samples={given.samples}"] if given.samples else [])]
        [job] = make_jobs(given.comparison, [row], 1, [*overrides, f"storage.url={folder}"])
        config = job.config.model_copy(update={"run": job.config.run.model_copy(update={"seed": given.seed})})
        trained = train_plain(config, given.plain_s) if given.plain_s else train_ours(config, Path(folder))
        line = measured(trained, config, features, given.split, given.num_samples)
    line = {"name": name, "seed": given.seed, "split": given.split} | line
    print(json.dumps(line))
    with given.out.open("a") as out:
        out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
