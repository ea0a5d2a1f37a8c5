"""A job in parts for tests; it is imported by workers in other processes."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ebmscale.errors import DataError
from ebmscale.part_files import PartFiles


class Unsendable(Exception):
    def __init__(self, part: int, job: object):
        super().__init__(f"part {part} broke")


@dataclass(frozen=True)
class Squares:
    """Writes the squares of the part numbers, and notes who did them."""

    files: PartFiles
    num_parts: int
    kills: int = -1
    """The part that ends its worker, once, or always where it is `always`."""
    always: bool = False
    fails: int = -1
    breaks: int = -1
    """The part whose error cannot be sent to another process."""

    def done(self) -> set[int]:
        return self.files.done()

    def open(self) -> Callable[[int], None]:
        def work(part: int) -> None:
            mark = Path(self.files.storage.url) / f"killed-{part}"
            if part == self.kills and (self.always or not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if part == self.fails:
                raise DataError(f"part {part} is damaged.")
            if part == self.breaks:
                raise Unsendable(part, self)
            with (Path(self.files.storage.url) / "log").open("a") as log:
                log.write(f"{part} {os.getpid()}\n")
            self.files.write(part, str(part**2).encode())

        return work
