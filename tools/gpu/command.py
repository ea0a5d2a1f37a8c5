"""The command `tools/gpu_check`: it runs the parts one after the other, each in a process of its own."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tools.gpu.parts import PARTS, take
from tools.gpu.record import DONE, FAILED, RUNNING, STOPPED, Record, Setting, publish, read_all

SCRIPT = Path(__file__).parents[1] / "gpu_check"
TOTAL_S, LEAST_S = 900.0, 10.0
GRACE_S = 8.0


def main(about: str | None, arguments: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit code: 0 if every part is done, 1 if not, 2 if it cannot begin."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the records")
    parser.add_argument("--work", type=Path, default=Path("build/gpu_work"), help="folder of everything else")
    parser.add_argument("--parts", help="names with commas: " + ", ".join(part.name for part in PARTS))
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all parts together")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10/cifar10.npz"))
    parser.add_argument("--features", help="of the Frechet distance (default: a classifier, trained here)")
    parser.add_argument("--small", action="store_true", help="on the CPU, in small sizes")
    parser.add_argument("--take", nargs=3, metavar=("NUM", "FROM", "TO"), help="write the first NUM training images")
    parser.add_argument("--one", choices=[part.name for part in PARTS], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.take:
        if not given.take[0].isdecimal():
            parser.error(f"--take needs a number of images, not {given.take[0]!r}")
        take(int(given.take[0]), Path(given.take[1]), Path(given.take[2]))
        return 0
    names = given.parts.split(",") if given.parts else [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"there is no part {min(unknown)}")
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    if given.one:
        return _one(given)
    if not given.small and not _has_gpu():
        print("error: this machine has no CUDA device; --small tries the parts on the CPU.", file=sys.stderr)
        return 2
    return _all(given, names)


def _has_gpu() -> bool:
    import torch  # noqa: PLC0415 (slow to import)

    return torch.cuda.is_available()


def _all(given: argparse.Namespace, names: Sequence[str]) -> int:
    """Runs every part that is not done within what is left of the time, first those that were not begun before."""
    end = time.monotonic() + given.seconds
    found = read_all(given.out)
    waiting = [name for name in names if not _is_done(found.get(name, {}), given.small)]
    waiting.sort(key=lambda name: name in found)
    for name in waiting:
        left = end - time.monotonic()
        if left < LEAST_S:
            print(f"{name}: no time is left; run the same command again to measure it")
            continue
        part = next(part for part in PARTS if part.name == name)
        print(f"{name}: {part.about}, at most {min(part.limit_s, left):.0f} s", flush=True)
        _begin(given, name, min(part.limit_s, left))
    states = {name: read_all(given.out).get(name, {}) for name in names}
    for name, record in states.items():
        reason = f": {record['reason']}" if record.get("reason") else ""
        print(f"{name:<20} {record.get('state', 'not begun')}, {record.get('seconds', 0):.0f} s{reason}")
    return 0 if all(_is_done(record, given.small) for record in states.values()) else 1


def _is_done(record: dict[str, object], small: bool) -> bool:
    return record.get("state") == DONE and record.get("small") == small


def _begin(given: argparse.Namespace, name: str, limit_s: float) -> None:
    """Runs one part in a process group of its own, and stops it at its limit."""
    options = ["--out", given.out, "--work", given.work, "--data", given.data, "--one", name]
    options += ["--small"] if given.small else []
    options += ["--features", given.features] if given.features else []
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, SCRIPT, *map(str, options)], start_new_session=True)
    try:
        code = process.wait(limit_s)
        reason, state = f"it ended with exit code {code}", FAILED
    except subprocess.TimeoutExpired:
        reason, state = f"it was stopped after {limit_s:.0f} s", STOPPED
    except BaseException:
        _end(process)
        raise
    _end(process)
    record = read_all(given.out).get(name, {})
    if record.get("state", RUNNING) == RUNNING:  # it had no time to write its own end
        about = {"part": name, "small": given.small, "values": record.get("values", {})}
        seconds = round(time.monotonic() - began, 1)
        publish(given.out, record | about | {"state": state, "seconds": seconds, "reason": reason})


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and all that it started: at first by a signal that lets runs save."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + GRACE_S
        with contextlib.suppress(ProcessLookupError):  # of the group none is left
            os.killpg(process.pid, number)
            while time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
    process.wait()


def _one(given: argparse.Namespace) -> int:
    """Measures one part in this process."""
    part = next(part for part in PARTS if part.name == given.one)
    record = Record(given.out, part.name, given.small)
    earlier = read_all(given.out).get(part.name, {})
    if earlier.get("small") == given.small:
        record.values |= earlier.get("values", {})
    record.write(RUNNING)
    try:
        part.measure(Setting(given.small, given.work, given.data, given.features), record)
    except Exception as error:  # whatever is wrong with one part, the others are measured
        traceback.print_exc()
        record.write(FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 1
    record.write(DONE)
    return 0
