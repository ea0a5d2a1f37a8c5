"""Collective operations of an update, and the bytes that a worker sends, at ZeRO 0 to 3 with 2, 4 and 8 real workers.

    python tools/bench/collectives.py [--workers 2 4 8]

It trains the 8x8 digits with DeepSpeed and gloo, by the functions that the training loop calls for a batch. Every call
of torch's collectives is counted, those of Python objects apart. A worker is taken to send what a ring sends: of B
bytes in all and W workers, 2 B (W - 1) / W in an all-reduce, and B (W - 1) / W in the others.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

CONFIG = """
run: {name: collectives}
data: {url: DATA, num_streams: 16, shuffle_window: 16}
model: {latent_dim: 16, generator_width: 8, encoder_width: 8, ratio_hidden: [64, 64]}
posterior: {start: encoder, num_steps: 0}
prior: {num_particles: 512, num_steps: 2, num_chains: 32, sample_steps: 5}
stages: {max_stages: 2, updates_per_batch: 4, batch_size: 64, buffer_samples: 640, min_samples: 100000,
         max_samples: 300000, settle_samples: 100000, evidence_every: 100000, evidence_samples: 64}
train: {batch_size: 64, max_samples: 400000}
engine: deepspeed
storage: {url: RUNS}
metrics: {tensorboard: false}
device: cpu
"""
TENSORS = (
    "all_reduce",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "all_gather",
    "reduce",
    "reduce_scatter",
    "broadcast",
)
OBJECTS = ("all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list")
UPDATES = 3


def count_collectives() -> collections.Counter[str]:
    """Replaces torch's collectives by ones that count; before DeepSpeed is imported, which keeps references."""
    counter: collections.Counter[str] = collections.Counter()

    def counting(name: str, real: Any) -> Any:
        def collective(*args: Any, **kwargs: Any) -> Any:
            size = dist.get_world_size()
            largest = max((num_bytes(value) for value in (*args, *kwargs.values())), default=0)
            counter["bytes"] += largest * (size - 1) // size * (2 if name == "all_reduce" else 1)
            counter["objects" if name in OBJECTS else "collectives"] += 1
            return real(*args, **kwargs)

        return collective

    for name in (*TENSORS, *OBJECTS):
        setattr(dist, name, counting(name, getattr(dist, name)))
    return counter


def num_bytes(value: Any) -> int:
    """Bytes of a tensor, or of all tensors of a list."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(num_bytes, value)) if isinstance(value, list | tuple) else 0


def measure(data: str, runs: str, stage: int, counter: collections.Counter[str]) -> dict[str, float]:
    """What an update hands to the collectives, counted from the second update on."""
    from ebmscale.config import parse_config  # noqa: PLC0415 (after the collectives are replaced)
    from ebmscale.stop import StopSignal  # noqa: PLC0415
    from ebmscale.training import loop  # noqa: PLC0415
    from ebmscale.training.opening import open_run  # noqa: PLC0415
    from ebmscale.training.update import train_batch  # noqa: PLC0415
    from ebmscale.world import World  # noqa: PLC0415

    text = CONFIG.replace("DATA", data).replace("RUNS", f"{runs}/zero{stage}")
    world, stop = World.from_environment("cpu"), StopSignal()
    run = open_run(parse_config(text, [f"deepspeed.zero_stage={stage}"]), world, stop)
    batches = run.batches()
    for index in range(UPDATES + 1):
        if index == 1:
            counter.clear()
        batch = loop._next_batch(batches, world)
        report = train_batch(run, batch)
        run.finish(batch)
        loop._agree(run, stop, report)
    found = {name: counter[name] / UPDATES for name in ("collectives", "objects", "bytes")}
    run.close()
    return found


def main() -> None:
    """Measures with every number of workers, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--worker", nargs=2, metavar=("DATA", "RUNS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        torch.set_num_threads(1)
        counter = count_collectives()
        data, runs = given.worker
        counted = [measure(data, runs, stage, counter) for stage in range(4)]
        if os.environ["RANK"] == "0":
            print(json.dumps(counted))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "digits")
        program = [sys.executable, "-m", "ebmscale"]
        subprocess.run([*program, "pack", "digits", "-", data], check=True, stdout=subprocess.DEVNULL)
        print("| ZeRO | workers | collectives | of Python objects | KB that a worker sends |")
        print("|---|---|---|---|---|")
        for size in given.workers:
            for stage, found in enumerate(run_workers(size, data, f"{folder}/{size}")):
                cells = f"{found['collectives']:.1f} | {found['objects']:.1f} | {found['bytes'] / 1e3:,.0f}"
                print(f"| {stage} | {size} | {cells} |", flush=True)


def run_workers(size: int, data: str, runs: str) -> list[dict[str, float]]:
    """Runs `size` workers; returns what rank 0 counted, by ZeRO stage."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    done = subprocess.run(
        [sys.executable, *several, __file__, "--worker", data, runs],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: list[dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
