"""Which data set a run is trained on: noted in the run, and compared when it is resumed.

    URL/NAME/data.json     the set's identity, name and number of samples

The set may move to another address; another set of the same form is refused.
"""

import logging

from pydantic import BaseModel, ValidationError

from ebmscale.config import RunConfig
from ebmscale.data.manifest import Manifest
from ebmscale.errors import DataError, NotFoundError
from ebmscale.storage import Storage

log = logging.getLogger(__name__)

DATA_FILE = "data.json"


class RunData(BaseModel):
    """The data set of a run.

    Attributes:
        identity: see `Manifest.identity`.
        name: of the set.
        counts: samples of each part.
    """

    identity: str
    name: str
    counts: dict[str, int]

    @classmethod
    def of(cls, manifest: Manifest) -> "RunData":
        """What a run notes of this set."""
        return cls(identity=manifest.identity(), name=manifest.name, counts=manifest.counts())

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {part}" for part, count in self.counts.items())
        return f"{self.name} ({counts}; {self.identity[:12]})"


def read_run_data(storage: Storage) -> RunData | None:
    """What the folder of a run or a search notes; None where that was written by an earlier version, or is damaged."""
    try:
        return RunData.model_validate_json(storage.read_bytes(DATA_FILE))
    except NotFoundError:
        return None
    except ValidationError:
        log.warning("%s is damaged: the data set is taken for the one that it was", storage.url_of(DATA_FILE))
        return None


def check_run_data(storage: Storage, manifest: Manifest, config: RunConfig, what: str = "run") -> RunData:
    """Compares a data set with the one that the folder of a run or a search notes.

    Returns:
        What is to be noted from now on.

    Raises:
        DataError: it is another set, and `data.accept_changed` does not allow that.
    """
    old, new = read_run_data(storage), RunData.of(manifest)
    if old is None or old.identity == new.identity:
        return new
    change = f"The {what} {storage.url} was made with the data set {old}, and {config.data.url} holds {new}"
    if config.data.accept_changed:
        log.warning("%s: it goes on with the new one, as data.accept_changed is true", change)
        return new
    raise DataError(
        f"{change}; give the address of the first one, choose "
        "another run.name, or set data.accept_changed=true to continue with the new one."
    )
