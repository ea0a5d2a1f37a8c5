"""`python -m ebmscale`, with a line on disk for every batch that was trained and for the exit: what a leg starts.

    CHAOS_TRACE=folder python tests/chaos/traced.py train CONFIG [KEY=VALUE]...

The lines go to `folder/RANK-PID.jsonl`. While there is a file `folder/slow`, every batch takes a quarter of a second
more, so that a run does not come to its end while its storage recovers. The program itself is as it is.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from ebmscale import cli
from ebmscale.data.stream import Batch
from ebmscale.training import loop

SLOW = "slow"
SLOWER_S = 0.25


def main() -> None:
    """Runs the program."""
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    folder = Path(os.environ["CHAOS_TRACE"])
    path, slow = folder / f"{rank}-{os.getpid()}.jsonl", folder / SLOW
    train_batch = loop.train_batch
    with path.open("ab", buffering=0) as file:

        def write(**values: Any) -> None:
            file.write(json.dumps(values).encode() + b"\n")  # one system call: a kill leaves whole lines

        def traced(*args: Any, **kwargs: Any) -> Any:
            result = train_batch(*args, **kwargs)
            batch = next(value for value in (*args, *kwargs.values()) if isinstance(value, Batch))
            rows = batch.rows.tolist()
            write(rank=rank, size=size, start=batch.start, end=batch.end, rows=rows, keys=batch.keys)
            if slow.exists():
                time.sleep(SLOWER_S)
            return result

        loop.train_batch = traced
        try:
            cli.main()
        except SystemExit as stop:
            write(exit=stop.code or 0)
            raise
        write(exit=0)


if __name__ == "__main__":
    main()
