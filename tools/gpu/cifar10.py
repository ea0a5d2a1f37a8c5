"""CIFAR-10 in two stages of training on one GPU, and LEBM beside it in as many seconds."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ebmscale.errors import EbmscaleError, Interrupted
from tools.gpu.record import Record, Setting, read_all

ROOT = Path(__file__).parents[2]
TRAIN_S, SMALL_TRAIN_S = 135.0, 60.0
SAMPLES, SMALL_SAMPLES = 5_000, 200
SHORTER = [
    "stages.start_samples=640000", "train.generator.stop_samples=640000", "train.max_samples=1200000",
    "stages.min_samples=20000", "stages.max_samples=100000", "stages.settle_samples=50000",
    "stages.evidence_every=20480", "prior.base_components=auto",
]  # fmt: skip
"""The preset with a quarter of its samples, for two minutes."""
TINY = [
    "posterior={start: encoder, num_steps: 0}", "model.generator.width=4", "model.encoder.width=4",
    "model.ratio.hidden=[16,16]", "prior.num_particles=256", "prior.base=moments", "prior.base_components=2",
    "stages.start_samples=3200", "train.generator.stop_samples=3200", "train.max_samples=9600",
    "stages.min_samples=640", "stages.max_samples=1600", "stages.settle_samples=640", "stages.evidence_every=320",
    "stages.evidence_samples=128", "checkpoint.every_samples=3200", "metrics.every_samples=800",
]  # fmt: skip
LEBM = [
    "method=lebm", "prior.base=standard", "model.ratio.squares=false", "prior.num_steps=40", "prior.step_size=0.4",
    "prior.sample_steps=40", "stages.updates_per_batch=1", "train.ratio.rate=5e-5",
]  # fmt: skip


def packed(setting: Setting) -> Path:
    """The packed set: that of --data, packed once if it is a file; in small sizes the digits."""
    if setting.small:
        _run("pack", "digits", "-", setting.work / "digits", unless=setting.work / "digits" / "manifest.json")
        return setting.work / "digits"
    if setting.data.is_dir():
        return setting.data
    _run("pack", "npy", setting.data, setting.work / "cifar10", unless=setting.work / "cifar10" / "manifest.json")
    return setting.work / "cifar10"


def cifar10(setting: Setting, record: Record) -> None:
    """Trains the preset, or what of it the time allows; notes samples, seconds and what every stage has gained."""
    _train(setting, record, "adaptive", [], SMALL_TRAIN_S if setting.small else TRAIN_S)


def lebm(setting: Setting, record: Record) -> None:
    """Trains LEBM for as many seconds as `cifar10` took."""
    beside = read_all(record.folder).get("cifar10", {}).get("values", {})
    seconds = beside.get("training, s")
    if seconds is None:
        raise EbmscaleError("the part cifar10 comes before this one")
    _train(setting, record, "lebm", [*LEBM, "train.max_samples=100000000"], seconds)


def cifar10_distances(setting: Setting, record: Record) -> None:
    """The distances of p_K, then of p_0, p_1, ..., and the ceiling."""
    run = setting.work / "runs" / "adaptive"
    num_stages = _num_stages(run)
    _distances(setting, record, run, [num_stages, 0, *range(1, num_stages)])


def lebm_distances(setting: Setting, record: Record) -> None:
    """The distances of LEBM's prior."""
    run = setting.work / "runs" / "lebm"
    _distances(setting, record, run, [_num_stages(run)])


def _train(setting: Setting, record: Record, name: str, more: list[str], limit_s: float) -> None:
    """Trains for at most `limit_s` seconds; a run that was begun before goes on."""
    data, run = packed(setting), setting.work / "runs" / name
    config = ROOT / "configs" / ("digits.yaml" if setting.small else "cifar10_two_stage.yaml")
    own = [f"run.name={name}", f"storage.url={setting.work / 'runs'}", f"data.url={data}"]
    sizes = TINY if setting.small else [*SHORTER, "device=cuda"]
    command = [sys.executable, "-m", "ebmscale", "train", str(config), *own, *sizes, *more]
    process = subprocess.Popen(command, cwd=ROOT)
    begin, stopped = time.monotonic(), False
    while process.poll() is None:
        time.sleep(0.5)
        line = _last_line(run / "metrics.jsonl")
        seconds = record.values.get("earlier, s", 0.0) + time.monotonic() - begin
        if line and line["samples_seen"] != record.values.get("samples"):
            record.note(samples=line["samples_seen"], **{"training, s": round(seconds, 1)})
        if seconds > limit_s and not stopped:
            stopped = True
            process.send_signal(signal.SIGTERM)  # it saves and ends
    seconds = record.values.get("earlier, s", 0.0) + time.monotonic() - begin
    line = _last_line(run / "metrics.jsonl")
    if process.returncode not in (0, Interrupted.exit_code):
        raise EbmscaleError(f"the training ended with exit code {process.returncode}")
    record.note(**{"training, s": round(seconds, 1), "earlier, s": round(seconds, 1), "samples": line["samples_seen"]})
    record.note(stages=_stages(run))


def _stages(run: Path) -> list[dict[str, Any]]:
    """What `events.jsonl` says of the stages that were frozen: their bounds in nats."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [
        {"stage": event["stage"], "bound": event["evidence"]["kl_bound"], "error": event["evidence"]["kl_bound_error"]}
        for event in events
        if event.get("freeze")
    ]


def _num_stages(run: Path) -> int:
    from ebmscale.model.load import load  # noqa: PLC0415 (slow to import)

    return load(str(run)).prior.num_stages


def _distances(setting: Setting, record: Record, run: Path, stages: list[int]) -> None:
    """Notes the values of `ebmscale evaluate` for the given stages, then the ceiling and the error."""
    features = _features(setting)
    num = str(SMALL_SAMPLES if setting.small else SAMPLES)
    options = ["--features", features, "--split", "validation", "--num-samples", num]
    for stage in stages:
        _run("evaluate", run, "--metrics", "frechet", "--stage", str(stage), *options)
        record.note(**{f"K = {stage}": _newest(run, f"frechet-*-stage{stage}-*.json")})
    _run("evaluate", run, "--metrics", "ceiling,reconstruction", *options)
    record.note(ceiling=_newest(run, "ceiling-*.json"), reconstruction=_newest(run, "reconstruction-*.json"))


def _features(setting: Setting) -> str:
    """The features of the distances: those that were given, or a classifier that is trained here."""
    if setting.features is not None:
        return setting.features
    place = setting.work / "features"
    sizes = ["--width", "4", "--epochs", "2"] if setting.small else ["--width", "24", "--epochs", "4"]
    _run("features", "train", packed(setting), place, *sizes, unless=place / "feature_net.json")
    return str(place)


def _newest(run: Path, pattern: str) -> dict[str, float]:
    file = max((run / "evaluation").glob(pattern), key=lambda path: path.stat().st_mtime)
    values: dict[str, float] = json.loads(file.read_text())["values"]
    return values


def _run(*arguments: str | Path, unless: Path | None = None) -> None:
    """Runs `ebmscale ARGUMENTS`, unless a file is there that it writes at its end."""
    if unless is not None and unless.exists():
        return
    done = subprocess.run([sys.executable, "-m", "ebmscale", *map(str, arguments)], cwd=ROOT, check=False)
    if done.returncode:
        raise EbmscaleError(f"`ebmscale {' '.join(map(str, arguments))}` ended with exit code {done.returncode}")


def _last_line(file: Path) -> dict[str, Any]:
    try:
        lines = file.read_text().splitlines()
        found: dict[str, Any] = json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return found
