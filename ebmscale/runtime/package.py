"""What a job uploads: the files of a folder that Ray would ship, and how large they are."""

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ebmscale.errors import ConfigError
from ebmscale.runtime.exposure import is_secret_file

MOST_BYTES = 500 * 2**20  # what Ray takes
SHOWN = 3


@dataclass(frozen=True)
class Package:
    """The files below a folder that are uploaded with a job, the largest first.

    Attributes:
        folder: the working directory.
        files: paths below it, and sizes in bytes.
        withheld: paths of files that stay here because they look like secrets.
    """

    folder: Path
    files: list[tuple[Path, int]]
    withheld: list[Path] = field(default_factory=list)

    @property
    def excludes(self) -> list[str]:
        """What is withheld, as Ray takes it: patterns of .gitignore that mean these files and no others."""
        return ["/" + re.sub(r"([\\\[\]*?!# ])", r"\\\1", str(path)) for path in self.withheld]

    @property
    def num_bytes(self) -> int:
        """Before compression."""
        return sum(size for _, size in self.files)

    def holds(self, path: Path) -> bool:
        """Whether a file is among them."""
        wanted = path.resolve()
        return any((self.folder / found).resolve() == wanted for found, _ in self.files)

    def summary(self) -> str:
        """Number, size and the largest."""
        largest = ", ".join(f"{path} {size / 1e6:.1f} MB" for path, size in self.files[:SHOWN])
        return f"{len(self.files)} files, {self.num_bytes / 1e6:.1f} MB; largest: {largest or 'none'}"

    def check(self) -> None:
        """Refuses what Ray would refuse after a long upload.

        Raises:
            ConfigError: it is too large.
        """
        if self.num_bytes > MOST_BYTES:
            raise ConfigError(
                f"The working directory {self.folder} has {self.summary()}, and Ray takes at most "
                f"{MOST_BYTES / 1e6:.0f} MB; name what the job does not need in .rayignore or .gitignore."
            )


def examine_folder(folder: Path) -> Package:
    """Lists a folder as Ray packs it, by Ray's own walk: without what .gitignore and .rayignore files name.

    Files that look like secrets are told apart: everybody who may use the cluster could read them on its nodes.

    Raises:
        ConfigError: it is no folder.
    """
    from ray._private import ray_constants  # noqa: PLC0415
    from ray._private.runtime_env import packaging  # noqa: PLC0415

    if not folder.is_dir():
        raise ConfigError(f"The working directory {folder} is no folder; give --working-dir one.")
    here = folder.absolute()
    files: list[tuple[Path, int]] = []
    withheld: list[Path] = []

    def take(path: Path) -> None:
        if path.is_file() and is_secret_file(path):
            withheld.append(path.relative_to(here))
        elif path.is_file():
            files.append((path.relative_to(here), path.stat().st_size))

    excludes = [packaging._get_excludes(here, ray_constants.get_runtime_env_default_excludes())]
    with_git = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    packaging._dir_travel(here, excludes, take, include_gitignore=with_git, logger=logging.getLogger(__name__))
    return Package(here, sorted(files, key=lambda found: -found[1]), sorted(withheld))
