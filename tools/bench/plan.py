"""Compares forecasts of `ebmscale plan` with measurements: time of an update and memory, with 1 and 2 real workers.

    python tools/bench/plan.py CONFIG [key=value ...]     e.g. configs/digits.yaml, which needs no download

First it measures bandwidth and latency between the two workers, with all-reduces of a large and a small tensor, for the
plan. Every worker has one thread. Updates are those of the last stage, as in the plan.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from ebmscale.config import RunConfig, load_config
from ebmscale.forecast.plan import Network, Plan, plan
from ebmscale.forecast.process_memory import peak_bytes
from ebmscale.forecast.timing import update_seconds
from ebmscale.world import World

LARGE, SMALL = 4_000_000, 1
REPEATS = 20


def measure_updates(config: RunConfig, num_updates: int) -> dict[str, float]:
    """Mean seconds of an update and its parts on this worker's run, and its peak memory (collective)."""
    world = World.from_environment(config.device)
    seconds = update_seconds(config, world, num_updates)
    return seconds | {"peak_bytes": max(world.gather_objects(peak_bytes()))}


def measure_network() -> dict[str, float]:
    """Bandwidth in Gbit/s and latency in microseconds of an all-reduce between two workers."""
    dist.init_process_group("gloo")
    seconds = {}
    for size in (SMALL, LARGE):
        tensor = torch.zeros(size)
        dist.all_reduce(tensor)
        begin = time.perf_counter()
        for _ in range(REPEATS):
            dist.all_reduce(tensor)
        seconds[size] = (time.perf_counter() - begin) / REPEATS
    bits = LARGE * 4 * 8  # sent by each of the two workers
    return {"bandwidth_gbit": bits / (seconds[LARGE] - seconds[SMALL]) / 1e9, "latency_us": seconds[SMALL] * 1e6}


def start_workers(size: int, *arguments: str) -> dict[str, float]:
    """Runs this file's worker in `size` processes of one thread; returns the result that rank 0 printed."""
    several = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
    done = subprocess.run(
        [sys.executable, *several, __file__, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def answer(value: dict[str, Any]) -> None:
    """Prints a worker's result, on rank 0."""
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(value))


def compare(found: Plan, config: RunConfig, measured: dict[int, dict[str, float]]) -> None:
    """Prints the table."""
    print("| workers | engine | update s, forecast | measured | ratio | MB, forecast | measured peak | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for line in found.forecasts:
        if line.engine.zero_stage not in (None, config.deepspeed.zero_stage):
            continue
        seconds, peak = measured[line.size]["total"], measured[line.size]["peak_bytes"] / 1e6
        between = config.stages.evidence_every / config.train.batch_size
        seconds += measured[line.size]["evidence"] / max(between, 1.0)
        announced = (line.memory.peak + found.process_bytes + (found.start.memory_bytes if found.start else 0)) / 1e6
        print(
            f"| {line.size} | {line.engine.name} | {line.update_s or 0:.4f} | {seconds:.4f} "
            f"| {seconds / (line.update_s or 1):.2f} | {announced:.0f} | {peak:.0f} | {peak / announced:.2f} |"
        )
    one, two = (measured[size]["total"] for size in (1, 2))
    print(f"\nmeasured speed-up of 2 workers: {one / two:.2f}; by part, 1 and 2 workers:")
    for part in ("data", "posterior", "generator", "prior", "ratio"):
        print(f"  {part:<10} {measured[1][part]:.4f} s  {measured[2][part]:.4f} s")


def main() -> None:
    """Measures, plans, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=10, help="updates to time with each number of workers")
    parser.add_argument("--worker", choices=["updates", "network"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    overrides = [*options.overrides, "num_threads=1", "device=cpu", "metrics.tensorboard=false"]
    config = load_config(options.config, overrides)
    if options.worker:
        answer(measure_network() if options.worker == "network" else measure_updates(config, options.updates))
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        return
    common = [options.config, *overrides, "--updates", str(options.updates)]
    network = start_workers(2, *common, "--worker", "network")
    print(f"2 workers: {network['bandwidth_gbit']:.1f} Gbit/s, {network['latency_us']:.0f} us\n")
    torch.set_num_threads(1)
    found = plan(config, [1, 2], Network(**network))
    compare(found, config, {size: start_workers(size, *common, "--worker", "updates") for size in (1, 2)})


if __name__ == "__main__":
    main()
