"""Where a run lies in a storage, and its configuration there."""

from ebmscale.config import RunConfig, parse_config
from ebmscale.data.manifest import FILE as MANIFEST_FILE
from ebmscale.errors import ConfigError, DataError
from ebmscale.model.checkpoint import CheckpointReader
from ebmscale.storage import Storage, open_storage
from ebmscale.stored import read_file

CONFIG_FILE = "config.yaml"


CONFIG_BYTES = 1 << 20


def run_storage(config: RunConfig) -> Storage:
    """Where a run lives."""
    return open_storage(config.storage).child(config.run.name)


def data_of(config: RunConfig, way_out: str) -> Storage:
    """The packed set that a run was trained on.

    Args:
        config: saved with the run.
        way_out: what a person can do where the set is not there.

    Raises:
        DataError: it is not there.
    """
    data, url = open_storage(config.data), config.data.url
    if data.exists(MANIFEST_FILE):
        return data
    if url.is_relative:
        raise DataError(
            f"The run was trained on {url}, an address relative to the folder where the training ran, and from here "
            f"there is no set at {data.url}; {way_out}."
        )
    raise DataError(f"The run was trained on {data.url}, and there is no set any more; {way_out}.")


def saved_config(storage: Storage) -> RunConfig | None:
    """The configuration that a run's checkpoints were made with; None where there are no checkpoints."""
    if not storage.exists(CONFIG_FILE) or not CheckpointReader(storage).finished():
        return None
    return load_run_config(storage)


def load_run_config(storage: Storage) -> RunConfig:
    """The configuration saved with a run.

    Raises:
        ConfigError: there is no run.
    """
    if not storage.exists(CONFIG_FILE):
        raise ConfigError(f"There is no run at {storage.url}; give the address that `ebmscale train` printed.")
    return parse_config(read_file(storage, CONFIG_FILE, CONFIG_BYTES), source=storage.url_of(CONFIG_FILE))
