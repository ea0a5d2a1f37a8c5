"""The prior alone: nats of held-out latents after every stage, on posteriors of one encoder that stand still.

    python tools/bench/prior.py --set fashion --start normal --budget 120 --seeds 1 --out prior.jsonl
    python tools/bench/prior.py --set cifar --start chosen --budget 60 --data ../shared/data/latents --part test

`--data` is a folder with fashion/latents.npz and cifar/latents.npz: means and standard deviations of the posteriors of
train, validation and test images. Stages see train and validation; `--part` says which draws are judged at the end.
`--more` adds posteriors to train on, as `ebmscale encode LATENTS/cifar/model data/mirrored data/z` writes them.
Starts: N(0, I); the Gaussian with the moments; the base that the product chooses. `--single` allows one stage alone,
and `--updates` fixes the length of every stage. A ratio's updates are in bf16 where the machine multiplies it faster.
`--distance` adds the Frechet distance of 5,000 decoded samples after each stage to as many decoded posteriors of the
part, by the model and the classifier that lie in the folder. Times are processor seconds of all that is learned, on one
thread; log Z of the table is measured once more afterwards, by particles of its own, in time that does not count.

Shapes: N posteriors, M draws, Z coordinates.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmscale.data.chunks import read_samples
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import select
from ebmscale.density.bases import MomentBase
from ebmscale.density.moves import MoveSettings
from ebmscale.density.path import Annealing
from ebmscale.density.prior import Base, RatioSequence, StandardNormal
from ebmscale.evaluate.features import open_features
from ebmscale.evaluate.frechet import Moments, frechet_distance
from ebmscale.kernels.rate import bf16_gain
from ebmscale.model.load import open_model
from ebmscale.model.pixels import to_images
from ebmscale.model.sampler import agreement, draw_density, total
from ebmscale.networks import Standardised, vector_ratio
from ebmscale.stages.base import choose_base
from ebmscale.stages.draws import Draws
from ebmscale.stages.from_base import FromBase
from ebmscale.stages.learn import Course, Learned, learn
from ebmscale.stages.particles import measure_normalisers
from ebmscale.stages.record import StageRecord
from ebmscale.stages.settings import ParticleSettings, StageSettings, TrainerSettings
from ebmscale.stages.targets import Parts, Posteriors, Target
from ebmscale.storage import Storage

HIDDEN = {"normal": (200, 200), "gaussian": (200, 200), "chosen": (400, 400)}
NUM_DECODED = 5000
SHARE_OF_BASE = 0.35
"""Of the time, that a chosen base may take."""


def load(folder: Path, name: str) -> dict[str, Posteriors]:
    """The posteriors of the parts train, validation and test."""
    file = np.load(folder / name / "latents.npz")

    def part(name: str) -> Posteriors:
        mean, std = (torch.from_numpy(file[f"{name}_{kind}"].astype(np.float32)) for kind in ("mean", "std"))
        return Posteriors(mean, std)

    return {name: part(name) for name in ("train", "validation", "test")}


def with_more(train: Posteriors, url: str) -> Posteriors:
    """The training posteriors with those of the train split of a packed set, which `ebmscale encode` wrote."""
    storage = Storage.at(url)
    manifest = Manifest.load(storage)
    found = select(manifest, "train").find()
    mean, std = read_samples(storage, manifest, found).unbind(1)
    return Posteriors(torch.cat([train.mean, mean]), torch.cat([train.std, std]))


def halves(posteriors: Posteriors) -> tuple[Posteriors, Posteriors]:
    """Every second posterior, and the others."""
    one, other = (Posteriors(posteriors.mean[first::2], posteriors.std[first::2]) for first in (0, 1))
    return one, other


def base_of(start: str, train: Posteriors, tune: Target, seed: int, budget: float) -> tuple[Base, list[dict[str, Any]]]:
    """The base that stages start from, and what was tried to find it."""
    if start == "normal":
        return StandardNormal(train.mean.shape[1]), []
    if start == "gaussian":
        return MomentBase.of_posteriors(train.mean, train.std.square()), []
    chosen = choose_base(train, tune, seed, SHARE_OF_BASE * budget)
    return chosen.base, [asdict(one) for one in chosen.tried]


def fit(a: argparse.Namespace, data: dict[str, Posteriors], seed: int) -> dict[str, Any]:
    """One fit and its table."""
    began = time.process_time()
    tune, judge = halves(data["validation"])
    base, tried = base_of(a.start, data["train"], tune, seed, a.budget)
    base_s = time.process_time() - began
    parts = Parts(data["train"], tune, judge)
    parts = parts.mapped(base.coordinates)
    hidden = tuple(int(width) for width in a.hidden.split(",")) if a.hidden else HIDDEN[a.start]
    network = Standardised(vector_ratio(base.dim, hidden, "silu", a.quadratic, squares=True, bounded=True), base.dim)
    empty = RatioSequence(base, network).in_coordinates()
    trainer = TrainerSettings(bound=a.bound, bf16=a.precision == "bf16")
    if a.updates:
        trainer = replace(trainer, min_updates=a.updates, max_updates=a.updates)
    particles = ParticleSettings()
    if a.moves == "mala":
        moves = MoveSettings(kind="mala", num_moves=4)
        particles = replace(particles, annealing=replace(particles.annealing, moves=moves))
    settings = StageSettings(max_stages=1 if a.single else a.max_stages, trainer=trainer, particles=particles)
    draws = Draws(seed)
    source = FromBase(empty, settings.particles, draws, settings.gain_limit)
    learned = learn(Learned(empty), source, Course(parts, settings, draws, began + a.budget), said)
    seconds = time.process_time() - began
    held_out = data[a.part].every(torch.Generator().manual_seed(1000))
    return {
        "set": a.set, "start": a.start, "budget": a.budget, "part": a.part, "seed": seed, "hidden": hidden,
        "precision": a.precision, "base_s": base_s, "tried": tried, "seconds": seconds, "ended": learned.verdict.reason,
        "table": table(base, learned, held_out, data[a.part].repeats, draws),
        "samples": checked(base, learned, held_out, draws) if a.check else [],
        "distances": distances(a.data / a.set, base, learned, held_out, draws) if a.distance else [],
        "records": [asdict(record) for record in learned.records],
    }  # fmt: skip


def table(base: Base, learned: Learned, held_out: Tensor, repeats: int, draws: Draws) -> list[dict[str, float]]:
    """Nats of the draws after each stage, with the error of their mean and that of log Z, by `measure_normalisers`."""
    x = base.coordinates(held_out)
    log_p = base.log_density(held_out).double()
    measured = measure_normalisers(learned.sequence, 6, 2048, Annealing(), draws)
    rows = []
    for stage in range(learned.sequence.num_stages + 1):
        value = (log_p + total(learned.sequence.prefix(stage), x).double()).view(repeats, -1).mean(0)
        own = learned.records[stage - 1] if stage else None
        rows.append({
            "stage": stage,
            "nats": float(value.mean()) - (measured[stage - 1].log_z if stage else 0.0),
            "of_latents": float(value.std()) / len(value) ** 0.5,
            "of_log_z": measured[stage - 1].error if stage else 0.0,
            "nats_by_its_own_log_z": float(value.mean()) - (own.log_z if own else 0.0),
        })  # fmt: skip
    return rows


def checked(base: Base, learned: Learned, held_out: Tensor, draws: Draws) -> list[dict[str, Any]]:
    """After each stage: how samples were drawn, and whether their mean log density is that of held-out draws."""
    x = base.coordinates(held_out)[:4000]
    rows = []
    for stage in range(1, learned.sequence.num_stages + 1):
        sequence = learned.sequence.prefix(stage)
        found = draw_density(sequence, 2048, draws.seed)
        agrees = agreement(sequence, found.z, x, min(found.unique, found.ancestors))
        rows.append({
            "stage": stage, "method": found.method, "reason": found.reason, "unique": found.unique,
            "ancestors": found.ancestors, **asdict(agrees), "holds": agrees.holds,
        })  # fmt: skip
    return rows


def distances(folder: Path, base: Base, learned: Learned, held_out: Tensor, draws: Draws) -> list[float]:
    """After 0, 1, ..., K stages: the Frechet distance of decoded samples to decoded held-out draws."""
    model = open_model(Storage.at(str(folder / "model")))
    features = open_features(str(folder / "features"))

    def moments(z: Tensor) -> Moments:
        found = Moments(features.num_features)
        for part in z.split(1000):
            found.add(features(to_images(model.decode(part))))
        return found

    real = moments(held_out[:NUM_DECODED])
    return [
        frechet_distance(real, moments(base.from_coordinates(draw_density(prior, NUM_DECODED, draws.seed).z)))
        for prior in (learned.sequence.prefix(stage) for stage in range(learned.sequence.num_stages + 1))
    ]


def said(record: StageRecord) -> None:
    """Prints a stage."""
    print(
        f"  stage {record.stage}: {record.updates} updates (best {record.best_at}), {record.supply}, loss "
        f"{record.evidence.loss:.3f}, gain {record.gain:.2f}, power {record.power:.2f}, "
        f"J {record.nats:.3f} ± {record.nats_error:.3f}, log Z "
        f"{record.log_z:.3f} ± {record.log_z_error:.3f}, memorised {record.memorised.of_negatives:.3f} "
        f"{record.memorised.of_target:.3f}, {record.seconds:.1f} s; {record.reason}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/latents"))
    parser.add_argument("--more", default="", help="a packed set of more posteriors to train on")
    parser.add_argument("--set", choices=["fashion", "cifar"], default="fashion")
    parser.add_argument("--start", choices=list(HIDDEN), default="normal")
    parser.add_argument("--budget", type=float, default=120.0, help="processor seconds")
    parser.add_argument("--part", choices=["validation", "test"], default="validation")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 0")
    parser.add_argument("--hidden", default="", help="widths, with commas")
    parser.add_argument("--bound", type=float, default=None)
    parser.add_argument("--quadratic", action="store_true")
    parser.add_argument("--moves", choices=["hmc", "mala"], default="hmc", help="how particles follow the stages")
    parser.add_argument("--distance", action="store_true", help="Frechet distance of decoded samples after each stage")
    parser.add_argument("--check", action="store_true", help="draw samples after each stage and compare log densities")
    parser.add_argument("--single", action="store_true")
    parser.add_argument("--updates", type=int, default=0)
    parser.add_argument("--max-stages", type=int, default=8)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto", help="of a ratio's updates")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.precision == "auto":
        arguments.precision = "bf16" if bf16_gain(torch.device("cpu")) > 1 else "fp32"
    data = load(arguments.data, arguments.set)
    if arguments.more:
        data["train"] = with_more(data["train"], arguments.more)
    for seed in range(arguments.seeds):
        found = fit(arguments, data, seed)
        nats = ", ".join(f"{row['nats']:.2f}" for row in found["table"])
        error = found["table"][-1]["of_log_z"]
        print(
            f"{arguments.set} {arguments.start} seed {seed}, {arguments.precision}: {nats} (log Z ± {error:.2f}) "
            f"in {found['seconds']:.1f} s"
        )
        if found["distances"]:
            print("  Frechet distances: " + ", ".join(f"{one:.1f}" for one in found["distances"]))
        if arguments.out is not None:
            with arguments.out.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
