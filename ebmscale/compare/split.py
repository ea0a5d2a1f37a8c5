"""The samples that the rows of a comparison are measured on, found and checked before anything trains."""

from collections.abc import Iterable

from ebmscale.config import RunConfig
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.pack import pack
from ebmscale.data.split import select
from ebmscale.errors import ConfigError, DataError
from ebmscale.evaluate.images import default_split
from ebmscale.storage import open_storage


def common_split(configs: Iterable[RunConfig], wanted: str | None) -> str:
    """The split on which all rows are measured; a set that is not packed yet is packed.

    Args:
        configs: of the rows.
        wanted: the split that the comparison asks for; None: test, or validation if the sets have no test part.

    Raises:
        ConfigError: some rows' sets have a test part and others have none, and no split is asked for.
        DataError: a set is missing, or has no samples of the split.
    """
    blocks = {config.data.model_dump_json(): config for config in configs}.values()
    sets = [(config, _manifest(config)) for config in blocks]
    splits = {wanted or default_split(manifest, config.data.held_out) for config, manifest in sets}
    if len(splits) > 1:
        raise ConfigError(
            "Some rows have data with a test part and others have none; choose evaluation.split: validation."
        )
    [split] = splits
    for config, manifest in sets:
        block = config.data
        try:
            select(manifest, split, block.validation_fraction, block.held_out, with_anomalies=True)
        except DataError as error:
            raise DataError(f"{error} The key of a comparison is evaluation.split.") from None
    return split


def _manifest(config: RunConfig) -> Manifest:
    data = open_storage(config.data)
    if config.data.format is not None and not data.exists(FILE):
        pack(open_source(config.data.format, config.data.source or ""), data)
    return Manifest.load(data)
