"""Opens a run and saves it again at once, under one engine after another, on one number of processes after another.

    python topology_worker.py CONFIG SIZE=ENGINE,... [SIZE=ENGINE,... ...]     an ENGINE is plain, or zero0 to zero3

Prints the name of every checkpoint that it wrote; `train` as an ENGINE trains the run to its budget.
"""

import os
import sys
import time
from functools import partial

os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed reads it at its import

import ebmscale.training.engine_deepspeed  # noqa: F401 (once for all ranks)
from ebmscale.config import load_config
from ebmscale.stop import StopSignal
from ebmscale.training import saver
from ebmscale.training.loop import train
from ebmscale.training.opening import open_run
from ebmscale.training.view import View
from ebmscale.world import World
from tests.ranks import run_ranks


def overrides(engine: str) -> list[str]:
    return ["engine=plain"] if engine == "plain" else ["engine=deepspeed", f"deepspeed.zero_stage={engine[-1]}"]


def token() -> str:
    """As `make_token`, in steps of 65 microseconds in place of seconds, so that names are in the order of the saves."""
    return f"{time.time_ns() >> 16:012x}"


def save_under(config: str, engines: list[str]) -> None:
    world = World.from_environment("cpu")
    for engine in engines:
        if engine == "train":
            train(load_config(config, overrides("plain")), View(quiet=True), world, StopSignal())
            continue
        run = open_run(load_config(config, overrides(engine)), world, StopSignal())
        run.save()
        run.saver.finish()
        if world.is_first:
            print(engine, run.saver.store.finished()[0], flush=True)
        run.close()


def main() -> None:
    saver.make_token = token  # type: ignore[attr-defined]
    config, *legs = sys.argv[1:]
    for leg in legs:
        size, engines = leg.split("=")
        run_ranks(int(size), partial(save_under, config, engines.split(",")))


if __name__ == "__main__":
    main()
