"""The files and folders that commands write to: checked before the work begins, so that none is lost."""

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
        name = self.name if suffix is None else self.name.removesuffix(self.address.suffix) + suffix
        self.folder.publish(name, data)


def output_file(out: str, endings: tuple[str, ...]) -> OutputFile:
    """The file that `--out` names.

    Raises:
        ConfigError: it is not an address of a file, or has another ending.
        StorageError: it cannot be written there.
    """
    from ebmscale.storage import Storage  # noqa: PLC0415 (slow to import)

    address = Address(out)
    if address.suffix not in endings:
        raise ConfigError(f"--out {address} must end in {' or '.join(endings)}.")
    folder, name = Storage.of_file(address)
    path = folder.local_path(name)
    try:
        is_folder = path is not None and path.is_dir()
    except OSError as error:
        raise ConfigError(
            f"--out {address} cannot be written ({error.strerror or error}); give another name."
        ) from None
    if is_folder:
        raise ConfigError(f"--out {address} is a folder; name a file.")
    folder.probe("--out")
    return OutputFile(address, folder, name)


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

    folder = Storage.at(url)
    folder.probe("address")
    if kind is not None:
        refuse_other(folder, kind, "give another address")
    return folder
