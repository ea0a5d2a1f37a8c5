"""Lists the files of a folder that a job uploads, with their sizes."""

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from ebmscale.errors import ConfigError
from ebmscale.runtime.exposure import is_secret_file

MOST_BYTES = 500 * 2**20  # Ray's limit
SHOWN = 3


@dataclass(frozen=True)
class Package:
    """The files below a folder that a job uploads, the largest first.

    Attributes:
        folder: the working directory.
        files: paths below it, and sizes in bytes.
        withheld: paths of files that are not uploaded, because they look like secrets.
    """

    folder: Path
    files: list[tuple[Path, int]]
    withheld: list[Path] = field(default_factory=list)

    @property
    def excludes(self) -> list[str]:
        """The withheld files for Ray: .gitignore patterns, each of which matches exactly one file."""
        return ["/" + re.sub(r"([\\\[\]*?!# ])", r"\\\1", str(path)) for path in self.withheld]

    @property
    def num_bytes(self) -> int:
        """Total size before compression."""
        return sum(size for _, size in self.files)

    def holds(self, path: Path) -> bool:
        """Whether the job uploads this file."""
        wanted = path.resolve()
        return any((self.folder / found).resolve() == wanted for found, _ in self.files)

    def summary(self) -> str:
        """Number of files, total size, and the largest files."""
        largest = ", ".join(f"{path} {size / 1e6:.1f} MB" for path, size in self.files[:SHOWN])
        return f"{len(self.files)} files, {self.num_bytes / 1e6:.1f} MB; largest: {largest or 'none'}"

    def check(self) -> None:
        """Refuses a folder that Ray would refuse after a long upload.

        Raises:
            ConfigError: the folder is too large.
        """
        if self.num_bytes > MOST_BYTES:
            raise ConfigError(
                f"The working directory {self.folder} has {self.summary()}, and Ray accepts at most "
                f"{MOST_BYTES / 1e6:.0f} MB; list the files that the job does not need in .rayignore or .gitignore."
            )


def examine_folder(folder: Path) -> Package:
    """Lists the files that Ray packs from a folder: all but those that .gitignore and .rayignore files name.

    Files that look like secrets are listed apart, since all users of the cluster could read them on its nodes.

    Raises:
        ConfigError: the path is not a folder.
    """
    from ray._private import ray_constants  # noqa: PLC0415
    from ray._private.runtime_env import packaging  # noqa: PLC0415

    if not folder.is_dir():
        raise ConfigError(f"The working directory {folder} is not a folder; give --working-dir one.")
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
