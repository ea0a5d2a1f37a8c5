"""The files and folders that commands write to: checked before the work begins, so that none is lost."""

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ebmscale.address import Address
from ebmscale.errors import ConfigError

if TYPE_CHECKING:
    from ebmscale.storage import Storage


class AddressType(click.ParamType):
    """An argument that is an address: passwords and tokens in it are not shown."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """The address as it was given."""
        return Address(value)


ADDRESS = AddressType()


class OutputFile(NamedTuple):
    """A file to be written, here or at an address."""

    address: Address
    folder: "Storage"
    name: str

    def publish(self, data: bytes, suffix: str | None = None) -> None:
        """Writes the file as a whole; with `suffix` the file beside it that has this suffix instead."""
        self.folder.publish(self.name if suffix is None else self.beside(suffix), data)

    def beside(self, suffix: str) -> str:
        """The name of the file beside this one that has another suffix."""
        return self.name.removesuffix(self.address.suffix) + suffix


def output_file(out: str, endings: tuple[str, ...], beside: tuple[str, ...] = ()) -> OutputFile:
    """The file that `--out` names.

    Args:
        out: its address.
        endings: that it may have.
        beside: endings of the files that `OutputFile.publish` will write beside it.

    Raises:
        ConfigError: it is not an address of a file, or has another ending.
        StorageError: it cannot be written there.
    """
    from ebmscale.storage import Storage  # noqa: PLC0415 (slow to import)
    from ebmscale.storage_probe import probe  # noqa: PLC0415

    address = Address(out)
    if not address.real.strip():
        raise ConfigError("--out is empty; name a file.")
    if address.suffix not in endings:
        raise ConfigError(f"--out {address} must end in {' or '.join(endings)}.")
    folder, name = Storage.of_file(address)
    target = OutputFile(address, folder, name)
    for suffix in ("", *beside):
        _check_free(folder.local_path(target.beside(suffix) if suffix else name), suffix, address)
    probe(folder, "--out", tidy=True)
    return target


def _check_free(path: Path | None, suffix: str, address: Address) -> None:
    """Refuses a path of this machine where something else than a file is; `suffix` is that of a file beside `--out`."""
    try:
        mode = 0 if path is None else path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(
            f"--out {address} cannot be written ({error.strerror or error}); give another name."
        ) from None
    if mode and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        which = f"{path}, which is written beside --out {address}," if suffix else f"--out {address}"
        raise ConfigError(f"{which} is {what}; name a file.")


def output_path(place: str, option: str) -> Path:
    """The path of this machine that an option names.

    Raises:
        ConfigError: it is empty, or an address of another machine.
    """
    try:
        address = Address.parse(place)
    except ValueError as error:
        raise ConfigError(f"{option} cannot be used: {error}.") from None
    if not address.is_local:
        raise ConfigError(f"{option} {address} is not on this machine; give a path.")
    return Path(place if Address(place).is_relative else address.real)


def output_folder(url: str, kind: str | None = None) -> "Storage":
    """The folder that a command writes to.

    Args:
        url: its address.
        kind: what is written there, if that may not share the folder with anything else.

    Raises:
        ConfigError: it is not an address, or holds something else.
        StorageError: it cannot be written to.
    """
    from ebmscale.model.kinds import refuse_other  # noqa: PLC0415 (slow to import)
    from ebmscale.storage import Storage  # noqa: PLC0415
    from ebmscale.storage_probe import probe  # noqa: PLC0415

    folder = Storage.at(url)
    probe(folder, "address", tidy=True)
    if kind is not None:
        refuse_other(folder, kind, "give another address")
    return folder
