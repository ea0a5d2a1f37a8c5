"""The cost of saving to S3 for a training run: time, memory, and the time of a restore.

    python tools/bench/checkpoint.py                                  134 M parameters: 1.6 GB with Adam's moments
    python tools/bench/checkpoint.py --millions 5 --minutes 1 --interval 10 --checkpoints 10

A real run (digits, the real loop, one process, one torch thread, small batches and short chains for quick updates)
saves to an S3 server on loopback (Ceph's, see tests/s3_server.py), which uses the same machine's processors. It is
compared with the same run without saving. There are four parts:

    stall     the stall of the loop with a checkpoint every `--interval` seconds, and the wall time of both runs
    memory    the peak resident memory of both runs, and their difference in units of the state's size
    flat      resident memory over `--checkpoints` checkpoints, each of which begins when the previous one is written;
              the state is smaller, since the server is slow to release the memory of deleted objects
    restore   the time to open the run minus that to open a new run, and a plain s3fs download of the same objects

It needs about 12 times the state's size in memory, most of it for the server's store.
"""

import argparse
import functools
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import s3fs
from checkpoint_child import BATCH, METRICS_EVERY, WARM_BATCHES

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.s3_server import KEY, SECRET, S3Server, missing_programs

CHILD = Path(__file__).with_name("checkpoint_child.py")
STATE_BYTES = 12  # of a parameter: weight and two moments in fp32
SAMPLE_S = 0.05
MEGA = 1e6

RUN = """
run: {{name: bench}}
storage: {{url: s3://bench/runs}}
data: {{url: s3://bench/digits, format: digits, validation_fraction: 0.2, num_streams: 4, shuffle_window: 16}}
model: {{latent_dim: 16, generator: {{width: {width}}}, ratio: {{hidden: [{hidden}, {hidden}]}}}}
posterior: {{num_steps: 1, step_size: 0.1}}
prior: {{num_steps: 1, step_size: 0.2, num_chains: 16}}
stages:
  {{updates_per_batch: 1, batch_size: 4, buffer_samples: 64, evidence_samples: 16, evidence_every: 1000000000,
   min_samples: 1000000000, max_samples: 2000000000, settle_samples: 0}}
train: {{batch_size: {batch}, max_samples: {batch}}}
checkpoint: {{every_samples: 1000000000}}
metrics: {{every_samples: {metrics}, tensorboard: false}}
engine: plain
num_threads: 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=134.0, help="parameters of both networks")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument("--minutes", type=float, default=5.0, help="length of each of the two runs")
    parser.add_argument(
        "--checkpoints", type=int, default=50, help="number of checkpoints in the part flat; 0 leaves it out"
    )
    parser.add_argument("--flat-millions", type=float, default=20.0, help="parameters in the part flat")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    if missing := missing_programs():
        parser.error(f"there is no S3 server: install the Debian packages of {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder), arguments.millions):
        numbers = measure(Path(folder), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=1))


@contextmanager
def s3_server(folder: Path, millions: float) -> Iterator[None]:
    """A server with an empty bucket and room for six checkpoints; sets the environment variables for its clients."""
    server = S3Server(folder / "ceph", store_bytes=int(max(2e9, 6 * millions * MEGA * STATE_BYTES)))
    os.environ |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": server.url}
    try:
        server.start()
        s3fs.S3FileSystem().mkdir("bench")
        yield
    finally:
        server.stop()


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs all parts and prints their results."""
    child = functools.partial(run_child, folder, write_config(folder, arguments.millions))
    first = child("train", "without", WARM_BATCHES * 3)
    batch_s = first["batch_s"]
    num_batches = round(arguments.minutes * 60 / batch_s)
    every = max(1, round(arguments.interval / batch_s))
    print(f"{first['num_parameters']:,} parameters, an update takes {batch_s:.2f} s", flush=True)

    without = child("train", "without", num_batches)
    saving = child("train", "saving", num_batches, f"checkpoint.every_samples={every * BATCH}")
    numbers = {"stall": stall(without, saving), "memory": memory(without, saving)}
    print_stall(numbers["stall"])
    print_memory(numbers["memory"])
    if arguments.checkpoints:
        took_s = fmean(saving["write_s"]) + fmean(saving["begin_s"])
        enough = math.ceil((arguments.checkpoints + 1) * (took_s / batch_s * 1.3 + 2))
        many = run_child(
            folder, write_config(folder, arguments.flat_millions), "train", "many", enough,
            f"checkpoint.every_samples={BATCH}", CHECKPOINTS=str(arguments.checkpoints),
        )  # fmt: skip
        numbers["flat"] = flat(many)
        print_flat(numbers["flat"])
    numbers["restore"] = restored = child("restore", "saving", 1)
    print_restore(restored)
    return numbers


def write_config(folder: Path, millions: float) -> Path:
    """Writes the configuration of a run with this number of parameters, three quarters of them in the ratio network."""
    hidden, width = (round(math.sqrt(share * millions * MEGA)) for share in (0.75, 0.25 / 128))
    file = folder / f"{millions:g}-million.yaml"
    file.write_text(RUN.format(width=width, hidden=hidden, batch=BATCH, metrics=METRICS_EVERY * BATCH))
    return file


def run_child(
    folder: Path, config_file: Path, part: str, name: str, num_batches: int, *overrides: str, **environment: str
) -> dict[str, Any]:
    """Runs a part in its own process, and samples the resident memory of that process."""
    out = folder / "numbers.json"
    command = [sys.executable, str(CHILD), part, str(config_file), str(out)]
    settings = [f"run.name={name}", f"train.max_samples={num_batches * BATCH}", *overrides]
    process = subprocess.Popen([*command, *settings], env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)
    samples: list[tuple[float, int]] = []
    while process.poll() is None:
        samples.append((time.time(), resident_bytes(process.pid)))
        time.sleep(SAMPLE_S)
    if process.returncode:
        raise SystemExit(f"the part {part} of {name} ended with code {process.returncode}")
    return json.loads(out.read_text()) | {"memory": [sample for sample in samples if sample[1]]}


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def stall(without: dict[str, Any], saving: dict[str, Any]) -> dict[str, Any]:
    """The cost of saving for the loop, without the last checkpoint, for which the end of the run waits."""
    return {
        "checkpoints": len(saving["write_s"]),
        "stalled_share": saving["checkpoint_s"] / saving["parts_s"],
        "begin_s": saving["begin_s"],
        "write_s": saving["write_s"],
        "wall_s": [without["wall_s"], saving["wall_s"]],
    }


def memory(without: dict[str, Any], saving: dict[str, Any]) -> dict[str, Any]:
    """The peak resident memory during the updates, without and with saving, and the state's size."""
    highest = []
    for run in (without, saving):
        start, end = run["trained"]
        highest.append(max(size for at, size in run["memory"] if start <= at <= end))
    state = saving["num_parameters"] * STATE_BYTES
    return {"peak_bytes": highest, "state_bytes": state, "extra_share": (highest[1] - highest[0]) / state}


def flat(many: dict[str, Any]) -> dict[str, Any]:
    """The peak resident memory of each checkpoint, from its begin to that of the next one."""
    begun = [*many["begun"], math.inf]
    peaks = [
        max((size for at, size in many["memory"] if start <= at < end), default=0)
        for start, end in itertools.pairwise(begun)
    ]
    peaks = [peak for peak in peaks if peak]
    tenth = max(1, len(peaks) // 10)
    return {
        "checkpoints": len(peaks),
        "peak_bytes": peaks,
        "growth_share": fmean(peaks[-tenth:]) / fmean(peaks[1 : tenth + 1]) - 1,
        "state_bytes": many["num_parameters"] * STATE_BYTES,
    }


def print_stall(numbers: dict[str, Any]) -> None:
    before, after = numbers["wall_s"]
    begin_s, write_s = numbers["begin_s"], numbers["write_s"]
    print(
        f"stall    {numbers['stalled_share']:.2%} of the updates' time in the part `checkpoint`; "
        f"{len(write_s)} checkpoints, each stalls the loop for {fmean(begin_s):.2f} s (longest {max(begin_s):.2f} s), "
        f"written in {fmean(write_s):.1f} s\n"
        f"         wall time of the same updates {before:.1f} s without saving, {after:.1f} s with it "
        f"({after / before - 1:+.1%}; the server uses the same processors)",
        flush=True,
    )


def print_memory(numbers: dict[str, Any]) -> None:
    before, after = (size / MEGA for size in numbers["peak_bytes"])
    state = numbers["state_bytes"] / MEGA
    print(
        f"memory   peak {before:,.0f} MB without saving, {after:,.0f} MB with it: {after - before:,.0f} MB more, "
        f"{numbers['extra_share']:.2f} of the state's {state:,.0f} MB",
        flush=True,
    )


def print_flat(numbers: dict[str, Any]) -> None:
    peaks = [size / MEGA for size in numbers["peak_bytes"]]
    print(
        f"flat     {numbers['checkpoints']} checkpoints: peak {peaks[0]:,.0f} MB in the first, "
        f"{peaks[-1]:,.0f} MB in the last, {max(peaks):,.0f} MB at most; "
        f"the last tenth is {numbers['growth_share']:+.1%} of the first",
        flush=True,
    )


def print_restore(numbers: dict[str, Any]) -> None:
    size, rates = numbers["num_bytes"] / MEGA, {k: numbers["num_bytes"] / s for k, s in numbers["plain_s"].items()}
    own, best = numbers["num_bytes"] / numbers["transfer_s"], max(rates.values())
    print(
        f"restore  {size:,.0f} MB in {numbers['num_objects']} objects: "
        f"{numbers['restore_s']:.1f} s more than a new run, of which {numbers['transfer_s']:.1f} s transfer: "
        f"{numbers['restore_s'] - numbers['transfer_s']:.1f} s without it\n"
        f"         transfer at {own / MEGA:,.0f} MB/s; plain s3fs "
        + ", ".join(f"{rate / MEGA:,.0f} MB/s {name}" for name, rate in rates.items())
        + f": {own / best:.0%} of the faster",
        flush=True,
    )


if __name__ == "__main__":
    main()
