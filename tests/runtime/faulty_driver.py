"""Trains on Ray as `ebmscale train` does, with a fault in a worker.

    python -m tests.runtime.faulty_driver KIND RANK SAMPLES_SEEN MARKER CONFIG [key=value ...]

KIND is `hang` (once: MARKER is a file that says it was) or `die` (each time).
"""

import functools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ebmscale.config import load_config
from ebmscale.errors import EbmscaleError
from ebmscale.runtime.ray_train import train_on_ray
from ebmscale.runtime.ray_worker import WorkerSettings, ray_worker
from ebmscale.terminal import Terminal
from ebmscale.training import loop


def faulty_worker(kind: str, rank: int, samples_seen: int, marker: str, settings: WorkerSettings) -> str:
    sound = loop.train_batch

    def train_batch(run: Any, batch: Any) -> Any:
        if run.world.rank == rank and batch.start == samples_seen:
            if kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if not Path(marker).exists():
                Path(marker).touch()
                with run.timer.part("posterior"):
                    stuck_here()
        return sound(run, batch)

    loop.train_batch = train_batch
    return ray_worker(settings)


def stuck_here() -> None:
    threading.Event().wait()


def main(kind: str, rank: str, samples_seen: str, marker: str, config: str, *overrides: str) -> None:
    body = functools.partial(faulty_worker, kind, int(rank), int(samples_seen), marker)
    try:
        train_on_ray(load_config(config, overrides), Terminal(), body=body)
    except EbmscaleError as error:
        print(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
