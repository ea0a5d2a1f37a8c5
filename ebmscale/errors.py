"""Errors that a user can act on: one sentence that says what happened and what to do, and an exit code."""

from ebmscale.address import clean


class EbmscaleError(Exception):
    """An error that is shown to the user without a traceback. A command ends with its `exit_code`.

    Passwords and tokens in addresses are removed from its text.

    Example:
        >>> try:
        ...     model = ebmscale.load("runs/digits")
        ... except ebmscale.EbmscaleError as error:
        ...     print(error)
    """

    exit_code = 1

    def __init__(self, *arguments: object):
        super().__init__(*(clean(one) if isinstance(one, str) else one for one in arguments))


class ConfigError(EbmscaleError):
    """The configuration, or a command's arguments, cannot be used."""

    exit_code = 2


class DataError(EbmscaleError):
    """Training or evaluation data are missing, damaged or of the wrong form."""

    exit_code = 3


class StorageError(EbmscaleError):
    """A storage cannot be read or written, or what it holds is damaged."""

    exit_code = 4


class NotFoundError(StorageError):
    """A file that should be in a storage is not there."""


class NoRangesError(StorageError):
    """A server sends whole files only."""


class DamagedError(StorageError):
    """What a storage holds is not what was written."""


class LostRunError(StorageError):
    """This process may not write to a folder: another process writes there or took it over, or it was deleted."""


class DivergenceError(EbmscaleError):
    """Training diverged: a loss or a gradient stopped being finite, or a stage kept collapsing."""

    exit_code = 5


class WorkersLostError(EbmscaleError):
    """Workers of a distributed run were lost and could not be replaced."""

    exit_code = 6


class Interrupted(EbmscaleError):
    """The run was asked to stop and has saved its state."""

    exit_code = 130
