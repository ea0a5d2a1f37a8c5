"""The data set of a run: packed if it is not there, recorded, and compared at a resume.

    URL/NAME/data.json     identity, name and number of samples of the data set

The set may move to another address. A different set is refused, even if its images have the same shape.
"""

import logging
import math
from collections.abc import Callable

from pydantic import BaseModel, ValidationError

from ebmscale.config import RunConfig, with_values
from ebmscale.data.decode import POSTERIORS
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import DataError, NotFoundError
from ebmscale.networks import ImageShape
from ebmscale.storage import Storage

log = logging.getLogger(__name__)

DATA_FILE = "data.json"


class RunData(BaseModel):
    """The data set of a run.

    Attributes:
        identity: see `Manifest.identity`.
        name: of the set.
        counts: number of samples by part.
    """

    identity: str
    name: str
    counts: dict[str, int]

    @classmethod
    def of(cls, manifest: Manifest) -> "RunData":
        """The record of this set."""
        return cls(identity=manifest.identity(), name=manifest.name, counts=manifest.counts())

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {part}" for part, count in self.counts.items())
        return f"{self.name} ({counts}; {self.identity[:12]})"


def load_or_pack(config: RunConfig, data: Storage, check: Callable[[], None] = lambda: None) -> Manifest:
    """The manifest of the run's data set. If there is no set and `data.format` is given, the set is packed first.

    Args:
        config: of the run.
        data: where the set is.
        check: called after every image that is packed. An exception that it raises ends the packing.

    Raises:
        DataError: the set is missing or damaged, or its source cannot be packed.
    """
    if config.data.format is not None and not data.exists(FILE):
        log.info("packing %s into %s", config.data.format, data.url)
        source = open_source(config.data.format, config.data.source or "")
        pack(source, data, progress=lambda done, total: check())
    return Manifest.load(data)


def shape_of_samples(data: Storage, manifest: Manifest, config: RunConfig) -> tuple[int, ...]:
    """The shape of a sample of a set that a run trains on; (C, H, W) of images.

    Raises:
        DataError: the run's networks take other samples.
    """
    model = config.model
    if model.is_identity:
        if manifest.dtype == "uint8":
            raise DataError(
                f"{data.url} holds images, and model.generator.form: identity takes latents (arrays of floats); pack "
                "latents, or choose another form."
            )
        return manifest.image_shape
    if manifest.encoding == POSTERIORS:
        raise DataError(
            f"{data.url} holds latents as means and standard deviations; train configs/latents.yaml on them (its "
            "model.generator.form is identity)."
        )
    return manifest.image_shape if model.generator.class_path is not None else shape_of_images(data, manifest)


def with_latents_of(config: RunConfig, manifest: Manifest) -> RunConfig:
    """The configuration with the latent size of given latents, where the run has such and does not give a size.

    Raises:
        ConfigError: other keys do not fit that size.
    """
    model = config.model
    if model.size_is_given:
        return config
    shape = manifest.image_shape[1:] if manifest.encoding == POSTERIORS else manifest.image_shape
    sizes = {"model.latent_shape": list(shape)} if len(shape) > 1 else {}
    return with_values(config, {"model.latent_dim": math.prod(shape), **sizes}, config.run.name)


def shape_of_images(data: Storage, manifest: Manifest) -> ImageShape:
    """(C, H, W) of the images of a set.

    Raises:
        DataError: the set holds other arrays.
    """
    if manifest.dtype != "uint8" or len(manifest.image_shape) != 3:
        raise DataError(
            f"{data.url} holds {manifest.dtype} arrays of shape {manifest.image_shape}; "
            "training takes uint8 images "
            "(C, H, W), or latents where model.generator.form is identity (configs/latents.yaml)."
        )
    channels, height, width = manifest.image_shape
    return channels, height, width


def read_run_data(storage: Storage) -> RunData | None:
    """The record in the folder of a run or search; None if an earlier version wrote the folder, or it is damaged."""
    try:
        return RunData.model_validate_json(storage.read_bytes(DATA_FILE))
    except NotFoundError:
        return None
    except ValidationError:
        log.warning("%s is damaged: the data set is assumed to be unchanged", storage.url_of(DATA_FILE))
        return None


def check_run_data(storage: Storage, manifest: Manifest, config: RunConfig, what: str = "run") -> RunData:
    """Compares a data set with the record in the folder of a run or a search.

    Args:
        storage: the folder.
        manifest: of the data set.
        config: of the run.
        what: the kind of folder, for messages.

    Returns:
        The record to write from now on.

    Raises:
        DataError: it is a different set, and `data.accept_changed` is false.
    """
    old, new = read_run_data(storage), RunData.of(manifest)
    if old is None or old.identity == new.identity:
        return new
    change = f"The {what} {storage.url} was made with the data set {old}, and {config.data.url} holds {new}"
    if config.data.accept_changed:
        log.warning("%s: it continues with the new one, as data.accept_changed is true", change)
        return new
    raise DataError(
        f"{change}; give the address of the first one, choose "
        "another run.name, or set data.accept_changed=true to continue with the new one."
    )
