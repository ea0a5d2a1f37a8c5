"""The folder of a run in a storage, and the configuration in it."""

from typing import Any

from pydantic import ValidationError

from ebmscale.config import RunConfig, changed_keys, parse_config
from ebmscale.data.manifest import FILE as MANIFEST_FILE
from ebmscale.errors import ConfigError, DataError
from ebmscale.model.checkpoint import SavedCheckpoint
from ebmscale.model.checkpoint_reader import CheckpointReader
from ebmscale.model.kinds import what_is_there
from ebmscale.storage import Storage, open_storage
from ebmscale.stored import read_file

CONFIG_FILE = "config.yaml"


CONFIG_BYTES = 1 << 20


def run_storage(config: RunConfig) -> Storage:
    """The folder of a run."""
    return open_storage(config.storage).child(config.run.name)


def data_of(config: RunConfig, way_out: str) -> Storage:
    """The packed set that a run was trained on.

    Args:
        config: the one saved with the run.
        way_out: advice for the error message if the set is missing.

    Raises:
        DataError: the set is missing.
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
    """The configuration of the checkpoints of a run; None if the run has no checkpoints."""
    if not storage.exists(CONFIG_FILE) or not CheckpointReader(storage).finished():
        return None
    return load_run_config(storage)


def load_run_config(storage: Storage) -> RunConfig:
    """The configuration saved with a run.

    Raises:
        ConfigError: there is no run in the storage.
    """
    if not storage.exists(CONFIG_FILE):
        raise ConfigError(
            f"There is no run at {storage.url}; give the address that `ebmscale train` printed.{what_is_there(storage)}"
        )
    return parse_config(read_file(storage, CONFIG_FILE, CONFIG_BYTES), source=storage.url_of(CONFIG_FILE))


def model_of(config: RunConfig) -> dict[str, Any]:
    """What a checkpoint notes of the configuration: `model` without `ratio`, which other runs may choose anew."""
    return config.model.model_dump(mode="json", exclude={"ratio"})


def check_model(config: RunConfig, saved: SavedCheckpoint) -> None:
    """Refuses a checkpoint of another model: some keys, such as `model.sigma`, change no shape of a tensor.

    Raises:
        ConfigError: the configuration has other values of `model` than the checkpoint.
    """
    try:
        noted = type(config.model).model_validate(saved.manifest.model)
    except ValidationError:  # an earlier or later version wrote it
        return
    noted = noted.model_copy(update={"ratio": config.model.ratio})
    changed = changed_keys(config.model_copy(update={"model": noted}), config)
    if changed:
        raise ConfigError(
            f"The checkpoint {saved.name} was made with other values of {', '.join(changed)} than the configuration; "
            f"set them back, also in the {CONFIG_FILE} of the run."
        )
