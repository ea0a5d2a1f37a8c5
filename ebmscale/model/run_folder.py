"""Where a run lies in a storage, and its configuration there."""

from ebmscale.config import RunConfig, parse_config
from ebmscale.errors import ConfigError
from ebmscale.model.checkpoint import CheckpointReader
from ebmscale.storage import Storage, open_storage

CONFIG_FILE = "config.yaml"


def run_storage(config: RunConfig) -> Storage:
    """Where a run lives."""
    return open_storage(config.storage).child(config.run.name)


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
    return parse_config(storage.read_text(CONFIG_FILE), source=storage.url_of(CONFIG_FILE))
