"""Opens a run and saves it again at once, under one engine after another, on as many processes as torchrun starts.

    python topology_worker.py CONFIG ENGINE [ENGINE ...]     an ENGINE is plain, or zero0 to zero3

Prints the name of every checkpoint that it wrote; `train` as the first ENGINE trains the run to its budget before.
"""

import sys
import time

from ebmscale.config import load_config
from ebmscale.stop import StopSignal
from ebmscale.training import saver
from ebmscale.training.loop import train
from ebmscale.training.opening import open_run
from ebmscale.training.view import View
from ebmscale.world import World


def overrides(engine: str) -> list[str]:
    return ["engine=plain"] if engine == "plain" else ["engine=deepspeed", f"deepspeed.zero_stage={engine[-1]}"]


def token() -> str:
    """As `make_token`, in steps of 65 microseconds in place of seconds, so that names are in the order of the saves."""
    return f"{time.time_ns() >> 16:012x}"


def main() -> None:
    saver.make_token = token  # type: ignore[attr-defined]
    config, *engines = sys.argv[1:]
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


if __name__ == "__main__":
    main()
