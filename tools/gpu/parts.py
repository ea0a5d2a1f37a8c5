"""The parts of `tools/gpu_check`, in the order of their worth."""

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ebmscale.config import RunConfig, load_config
from ebmscale.networks import build_generator
from ebmscale.seeds import torch_generator
from ebmscale.world import World
from tools.gpu.cifar10 import cifar10, cifar10_distances, lebm, lebm_distances
from tools.gpu.record import Part, Record, Setting

ROOT = Path(__file__).parents[2]
UPDATES = 20
SHAPE = (3, 32, 32)
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (0, 1, 2, 3)  # of ZeRO
SMALL_RUN = [
    "data.num_streams=4", "data.shuffle_window=16", "data.validation_fraction=0.2", "model.latent_dim=4",
    "model.generator={width: 2}", "model.encoder.width=2", "model.ratio.hidden=[8,8]", "prior.num_particles=64",
    "prior.base=standard", "prior.base_components=1", "stages.start_samples=0", "stages.batch_size=32",
    "stages.buffer_samples=64", "stages.evidence_samples=32",
    "stages.evidence_every=320", "train.batch_size=32", "data.format=digits",
]  # fmt: skip


def tests(setting: Setting, record: Record) -> None:
    """The tests that need a GPU."""
    import pytest  # noqa: PLC0415 (only here)

    class Outcomes:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                found = record.values.setdefault("tests", {})
                found[report.nodeid] = report.outcome
                record.note(**{kind: sum(one == kind for one in found.values()) for kind in set(found.values())})

    record.values.clear()
    os.chdir(ROOT)
    files = sorted(str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py") if _has_gpu_tests(file))
    code = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", *files], plugins=[Outcomes()])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {pytest.ExitCode(code).name}")


def _has_gpu_tests(file: Path) -> bool:
    return "mark.gpu" in file.read_text()


def fused_chain(setting: Setting, record: Record) -> None:
    """Milliseconds of a prior chain by its number of ratios and its form."""
    from tools.bench.chain import measure  # noqa: PLC0415

    num_chains, num_steps, repeats = (16, 4, 1) if setting.small else (1024, 60, 7)
    device = torch.device(setting.device)
    record.note(chains=num_chains, steps=num_steps, latents=100)
    for stages in ([1], [2], [4], [8]):
        least = measure(device, num_chains, 100, num_steps, stages, repeats)
        for (number, form), seconds in least.items():
            if number:
                record.note(**{f"K = {number}, {form}, ms": round(seconds * 1e3, 3)})


def _configs(setting: Setting) -> dict[str, RunConfig]:
    """Runs whose updates are measured: the two presets of CIFAR-10; small ones of the digits take their place."""
    if setting.small:
        given = [*SMALL_RUN, f"data.url={setting.work / 'digits'}", "data.source=null"]
        two = [*given, "stages.start_samples=320", "train.generator.stop_samples=320"]
        return {
            "joint": load_config("configs/digits.yaml", [*given, "posterior.num_steps=2"]),
            "two_stage": load_config("configs/digits.yaml", [*two, "posterior.num_steps=0", "prior.base=moments"]),
        }
    from tools.gpu.cifar10 import packed  # noqa: PLC0415

    given = [f"data.url={packed(setting)}", "device=cuda"]
    return {
        "joint": load_config("configs/cifar10.yaml", given),
        "two_stage": load_config("configs/cifar10_two_stage.yaml", given),
    }


def stage_update(setting: Setting, record: Record) -> None:
    """Milliseconds of the parts of an update in the last stage, and of one update of a ratio."""
    from ebmscale.forecast.timing import update_seconds  # noqa: PLC0415
    from ebmscale.model.updates import updates_per_batch  # noqa: PLC0415

    for name, config in _configs(setting).items():
        seconds = update_seconds(config, World.from_environment(setting.device), 2 if setting.small else UPDATES)
        shape = (1, 8, 8) if setting.small else SHAPE
        num = updates_per_batch(config, shape)
        found = {f"{name}, {part}, ms": round(value * 1e3, 3) for part, value in seconds.items()}
        record.note(**found, **{f"{name}, one ratio update, ms": round(seconds["ratio"] / num * 1e3, 4)})


def engines(setting: Setting, record: Record) -> None:
    """How far weights after updates by ZeRO 0 to 3 differ from those of the plain engine, and milliseconds each.

    `moved` is how far the plain engine's updates moved a weight.
    """
    os.environ.setdefault("DS_ACCELERATOR", setting.device)  # DeepSpeed reads it at its import
    from ebmscale.training.engine import EngineSettings  # noqa: PLC0415

    for precision in ("fp32", "bf16"):
        plain, seconds = _trained(EngineSettings("plain", precision=precision), setting)
        moved = _apart(plain, _generator(setting).state_dict())
        record.note(**{f"plain, {precision}, ms": round(seconds * 1e3, 3), f"plain, {precision}, moved": moved})
        for stage in STAGES:
            weights, seconds = _trained(EngineSettings("deepspeed", stage, precision), setting)
            name, apart = f"ZeRO {stage}, {precision}", _apart(weights, plain)
            record.note(**{f"{name}, ms": round(seconds * 1e3, 3), f"{name}, largest difference": apart})


def _apart(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    return max(float((weights[name] - value).abs().max()) for name, value in others.items())


def _generator(setting: Setting) -> nn.Module:
    width = 4 if setting.small else 64
    return build_generator(100, SHAPE, width, "svhn", generator=torch_generator(0, "engines"))


def _trained(settings: Any, setting: Setting) -> tuple[dict[str, Tensor], float]:
    """Weights of a generator after `UPDATES` updates, and the seconds of one of the later ones."""
    from ebmscale.kernels.rate import clock_s  # noqa: PLC0415
    from ebmscale.training.adam import OptimizerSettings  # noqa: PLC0415
    from ebmscale.training.engines import make_engine  # noqa: PLC0415

    world = World.from_environment(setting.device)
    rows = 8 if setting.small else 128
    # eps is far above the rounding of gradients, which Adam would otherwise scale up to a whole step
    optimizer = OptimizerSettings(1e-3, (0.5, 0.999), eps=1e-4)
    engine = make_engine(_generator(setting).to(world.device), optimizer, settings, world)
    begin = 0.0
    for update in range(UPDATES):
        if update == UPDATES // 2:
            begin = clock_s(world.device)
        source = torch_generator(0, "batch", update)
        z, x = (torch.randn(shape, generator=source).to(world.device) for shape in ((rows, 100), (rows, *SHAPE)))
        engine.backward((engine(z) - x).square().mean())
        engine.step(1e-3)
    seconds = (clock_s(world.device) - begin) / (UPDATES - UPDATES // 2)
    return {name: value.double().cpu() for name, value in engine.full_weights().items()}, seconds


def memory(setting: Setting, record: Record) -> None:
    """Gigabytes of a run's last stage: the forecast of `ebmscale plan`, and the peak that was measured."""
    from ebmscale.forecast.plan import plan  # noqa: PLC0415
    from ebmscale.forecast.process_memory import peak_bytes  # noqa: PLC0415
    from ebmscale.forecast.timing import update_seconds  # noqa: PLC0415

    for name, config in _configs(setting).items():
        found = plan(config, [1], measuring=False)
        memory = min((one.memory for one in found.forecasts), key=lambda one: one.peak)
        forecast = memory.peak + (found.process_bytes if setting.small else 0)
        if not setting.small:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        update_seconds(config, World.from_environment(setting.device), 2)
        measured = peak_bytes() if setting.small else torch.cuda.max_memory_allocated()
        record.note(**{
            f"{name}, forecast, GB": round(forecast / 1e9, 3),
            f"{name}, measured, GB": round(measured / 1e9, 3),
            f"{name}, measured / forecast": round(measured / forecast, 3),
        })  # fmt: skip


def take(num: int, source: Path, target: Path) -> None:
    """Writes a file of CIFAR-10 with the first `num` training images and all test images."""
    try:
        with np.load(source) as arrays:
            kept = {name: value[:num] if "train" in name else value for name, value in arrays.items()}
    except (OSError, ValueError, EOFError, AttributeError):
        raise SystemExit(f"error: {source} is not a file of arrays (.npz).") from None
    np.savez_compressed(target, **kept)


PARTS = (
    Part("tests", "the tests that need a GPU", 120, tests),
    Part("fused_chain", "a prior chain in all its forms", 45, fused_chain),
    Part("stage_update", "the parts of an update", 60, stage_update),
    Part("engines", "ZeRO 0 to 3 and bf16 against the plain engine", 90, engines),
    Part("memory", "the peak of memory against the plan", 60, memory),
    Part("cifar10", "configs/cifar10_two_stage.yaml, as far as the time goes", 160, cifar10),
    Part("cifar10_distances", "its distances by stage, and its ceiling", 100, cifar10_distances),
    Part("lebm", "LEBM on the same encoder's setting, in as many seconds", 160, lebm),
    Part("lebm_distances", "its distances", 60, lebm_distances),
)
