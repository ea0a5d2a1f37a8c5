"""Trains two small networks with many engines, one after another, and saves what came out.

    python engine_worker.py FOLDER

Phases run in the order of PHASES, each on its number of processes; later ones continue from states that earlier ones
saved with another number. The test reads the results: this script judges nothing.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebmscale.seeds import torch_generator
from ebmscale.training.adam import OptimizerSettings
from ebmscale.training.engine import Engine, EngineSettings
from ebmscale.training.engines import make_engine
from ebmscale.world import World

NUM_UPDATES, SAVED_AFTER, NUM_ROWS = 20, 10, 8
# Adam divides by sqrt(v) + eps: a gradient near zero is scaled up to a full step with all its rounding. eps = 1e-4 is
# far above float32's rounding of these gradients (about 1e-8), so that engines which add in another order stay equal.
FACTORS = {"body.2.": 0.5, "2.": 0.25}  # parameters in the middle of both networks
OPTIMIZER = OptimizerSettings(
    rate=3e-3, betas=(0.5, 0.999), eps=1e-4, weight_decay=1e-3, clip_norm=0.5, factors=FACTORS
)
PLAIN = EngineSettings("plain")
ZERO = [EngineSettings("deepspeed", stage) for stage in (0, 1, 2, 3)]
PLAIN_BF16 = EngineSettings("plain", precision="bf16")
ZERO_BF16 = [EngineSettings("deepspeed", stage, "bf16") for stage in (0, 1, 2, 3)]

# phase -> number of processes, settings trained from the start, (what was saved, settings that go on from it)
PHASES: dict[str, tuple[int, list[EngineSettings], list[tuple[str, EngineSettings]]]] = {
    "alone": (1, [PLAIN, *ZERO, PLAIN_BF16, *ZERO_BF16], []),
    "together": (
        2,
        [PLAIN, *ZERO, PLAIN_BF16, *ZERO_BF16],
        [
            ("deepspeed1-fp32-of1", ZERO[1]),
            ("deepspeed1-fp32-of1", ZERO[3]),
            ("plain-fp32-of1", ZERO[2]),
            ("deepspeed1-fp32-of2", ZERO[1]),
            ("deepspeed1-fp32-of2", ZERO[3]),
            ("deepspeed3-fp32-of2", ZERO[3]),
            ("deepspeed3-fp32-of2", ZERO[0]),
            ("deepspeed3-bf16-of2", ZERO_BF16[1]),
        ],
    ),
    "alone_again": (
        1,
        [],
        [("deepspeed1-fp32-of2", ZERO[1]), ("deepspeed3-fp32-of2", PLAIN), ("plain-fp32-of2", ZERO[3])],
    ),
}


def label(settings: EngineSettings, size: int) -> str:
    """The name under which a run of so many processes is saved."""
    kind = settings.kind if settings.kind == "plain" else f"deepspeed{settings.zero_stage}"
    return f"{kind}-{settings.precision}-of{size}"


class Generator(nn.Module):
    """A few transposed convolutions (B, 5) -> (B, 1, 8, 8), and a parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(5, 7 * 4),
            nn.Unflatten(1, (7, 2, 2)),
            nn.ConvTranspose2d(7, 6, 4, 2, 1),
            nn.GELU(),
            nn.ConvTranspose2d(6, 1, 4, 2, 1),
        )
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, latents: Tensor) -> Tensor:
        return self.body(latents)


def make_engines(settings: EngineSettings, world: World) -> tuple[Engine, Engine]:
    """Generator and ratio network; every rank starts from other weights, so that rank 0's must be shared out."""
    with torch.random.fork_rng():
        torch.manual_seed(world.rank)
        generator, ratio = Generator(), nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 11), nn.Linear(11, 1))
    return make_engine(generator, OPTIMIZER, settings, world), make_engine(ratio, OPTIMIZER, settings, world)


def update(generator: Engine, ratio: Engine, position: int, world: World) -> tuple[float, float]:
    """One update of both networks on this rank's rows of the batch at a position; returns both gradient norms."""
    source = torch_generator(0, "batch", position)
    images = torch.randn(NUM_ROWS, 1, 8, 8, generator=source)[world.rank :: world.size]
    latents = torch.randn(NUM_ROWS, 5, generator=source)[world.rank :: world.size]
    generator.backward((generator(latents) - images).square().mean())
    generator.backward(generator(latents).abs().mean())  # two passes before one step
    ratio.backward(nn.functional.softplus(ratio(latents)).mean() + nn.functional.softplus(-ratio(latents + 1)).mean())
    rate = OPTIMIZER.rate * (1 - position / (2 * NUM_UPDATES))
    return generator.step(rate), ratio.step(rate)


def train(settings: EngineSettings, world: World, folder: Path, start: str | None = None) -> None:
    """Trains from the beginning, or from the state that run `start` saved, and saves the results of rank 0."""
    name = label(settings, world.size)
    engines, norms = make_engines(settings, world), []
    if start:
        for engine, state in zip(engines, torch.load(folder / f"{start}.half"), strict=True):
            engine.load_state(state)
    for position in range(SAVED_AFTER if start else 0, NUM_UPDATES):
        norms.append(update(*engines, position, world))
        if position + 1 == SAVED_AFTER and not start:
            save([engine.state() for engine in engines], folder / f"{name}.half", world)
    states = [engine.state() for engine in engines]
    result = {
        "norms": norms,
        "states": states,
        "working": [engine.working_weights() for engine in engines],
        "ranks_agree": same_everywhere((norms, states), world),
    }
    save(result | skip_step(engines[0], world), folder / f"{start + '-to-' if start else ''}{name}.end", world)


def skip_step(engine: Engine, world: World) -> dict[str, Any]:
    """What a step does when the last rank's gradient is not a number."""
    before = engine.state()
    latents = torch.ones(1, 5)
    engine.backward(engine(latents).mean() * (float("nan") if world.rank == world.size - 1 else 1.0))
    norm = engine.step(OPTIMIZER.rate)
    return {"bad_norm": norm, "skipped": all(torch.equal(before[k], v) for k, v in engine.state().items())}


def buffers_of_ranks(settings: EngineSettings, world: World, folder: Path) -> None:
    """Every rank's batch statistics after an update in which the ranks saw different data."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    engine = make_engine(module, OPTIMIZER, settings, world)
    engine.backward(engine(torch.randn(4, 3, generator=torch_generator(0, "rank", world.rank))).square().mean())
    engine.step(OPTIMIZER.rate)
    means = world.gather(engine.full_weights()["1.running_mean"])
    save(means, folder / f"{label(settings, world.size)}.buffers", world)


def same_everywhere(value: tuple[list, list[dict[str, Tensor]]], world: World) -> bool:
    """Whether norms and states are the same, bit for bit, on every rank."""
    norms, states = value
    others = world.gather_objects(value)
    return all(
        norms == other_norms
        and all(torch.equal(a[k], b[k]) for a, b in zip(states, other_states, strict=True) for k in a)
        for other_norms, other_states in others
    )


def save(value: Any, path: Path, world: World) -> None:
    """Saves on rank 0; every rank may read it afterwards."""
    if world.is_first:
        torch.save(value, path)
    world.barrier()


def run_phase(phase: str, folder: Path) -> None:
    """Runs one phase on this rank."""
    torch.set_num_threads(1)
    world = World.from_environment("cpu")
    _, fresh, resumed = PHASES[phase]
    for settings in fresh:
        train(settings, world, folder)
    for start, settings in resumed:
        train(settings, world, folder, start)
    if phase == "together":
        for settings in (PLAIN_BF16, ZERO[2], ZERO_BF16[3]):
            buffers_of_ranks(settings, world, folder)


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed reads it at its import
    import ebmscale.training.engine_deepspeed  # noqa: F401 (once for all ranks)
    from tests.ranks import run_ranks

    for name, (num_ranks, _, _) in PHASES.items():
        run_ranks(num_ranks, partial(run_phase, name, Path(sys.argv[1])))
