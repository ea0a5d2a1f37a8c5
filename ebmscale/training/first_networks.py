"""The networks that a run begins with: their first weights, the standardisation of given latents, users' own classes.

    URL/NAME/networks.json     the sha256 of the source of each class of the user's own

Shapes: N samples, B batch, S the shape of a latent, Z its number of coordinates.
"""

import logging

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ebmscale.address import Address
from ebmscale.config import RunConfig
from ebmscale.data.chunks import read_samples
from ebmscale.data.decode import POSTERIORS
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import select
from ebmscale.errors import ConfigError, DamagedError, DataError, EbmscaleError, NotFoundError
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.model.image_model import ImageModel
from ebmscale.model.pieces import tensors_of
from ebmscale.networks import OfShape, OwnRatio, Standard, source_sha256
from ebmscale.networks.own import FlatPosterior, one_line
from ebmscale.storage import Storage
from ebmscale.stored import Stored, read_document, read_file

log = logging.getLogger(__name__)

NETWORKS_FILE = "networks.json"
WEIGHTS_BYTES = 64 * 2**30
STANDARD_SAMPLES, BLOCKS = 65536, 16
"""Samples that given latents are standardised by, and in how many blocks they are read from a larger set."""
TRIED = 2


class OwnSources(Stored):
    """The sources of the classes of the user's own that a run was begun with, by the path of the class."""

    sha256: dict[str, str]


def first_networks(config: RunConfig, shape: tuple[int, ...], data: Storage, manifest: Manifest) -> ImageModel:
    """Generator and encoder before the first update, tried on a batch where they are a user's own.

    Raises:
        ConfigError: a class or a file of weights cannot be used.
        DataError: given latents cannot be standardised.
    """
    networks = build_model(config, shape)
    if config.model.is_identity:
        _standardise(networks, config, data, manifest)
    for name in ("generator", "encoder"):
        block, network = getattr(config.model, name), getattr(networks, name)
        if block.weights is not None and network is not None:
            load_weights(network, block.weights, f"model.{name}.weights")
    try_networks(config, networks, shape)
    return networks


def _standardise(networks: ImageModel, config: RunConfig, data: Storage, manifest: Manifest) -> None:
    """Sets the mean and the standard deviation of every coordinate, measured on the training part."""
    split = select(manifest, "train", config.data.validation_fraction, config.data.held_out)
    places = np.arange(len(split))
    if len(places) > STANDARD_SAMPLES:
        firsts = np.linspace(0, len(split) - STANDARD_SAMPLES // BLOCKS, BLOCKS).astype(np.int64)
        places = np.unique(firsts[:, None] + np.arange(STANDARD_SAMPLES // BLOCKS))
    rows = read_samples(data, manifest, split.find(places)).double()
    if not bool(rows.isfinite().all()):
        raise DataError(f"{data.url} has latents that are not finite numbers; pack the set without them.")
    if manifest.encoding == POSTERIORS:
        mean, std = rows.flatten(2).unbind(1)
        if bool((std < 0).any()):
            raise DataError(f"{data.url} has negative standard deviations; give std, not its log.")
        spread = (mean.var(0, correction=0) + std.square().mean(0)).sqrt()
    else:
        mean = rows.flatten(1)
        spread = mean.std(0, correction=0)
    constant = (spread <= 1e-12 * mean.abs().mean(0)).nonzero().flatten().tolist()
    if constant:
        more = f" and {len(constant) - 1} more" if len(constant) > 1 else ""
        raise DataError(
            f"Coordinate {constant[0]} of the latents in {data.url}{more} has the same value in every sample; leave it "
            "out of the latents."
        )
    for module in networks.modules():
        if isinstance(module, Standard):
            module.shift.copy_(mean.mean(0))
            module.scale.copy_(spread)


def load_weights(network: nn.Module, address: Address, key: str) -> None:
    """Takes the weights of a file: safetensors, or a state dict of torch, read without unpickling objects.

    Raises:
        ConfigError: there is no such file, or it is not of this network.
    """
    inner = network.network if isinstance(network, OfShape | FlatPosterior) else network
    storage, name = Storage.of_file(address)
    try:
        inner.load_state_dict(tensors_of(address, read_file(storage, name, WEIGHTS_BYTES)))
    except NotFoundError:
        raise ConfigError(f"{key}: there is no file {address}.") from None
    except EbmscaleError as error:
        raise ConfigError(f"{key}: {error}") from None
    except Exception as error:  # what torch raises for bytes that are not a state dict has no common class
        raise ConfigError(
            f"{key}: {address} does not hold the weights of {type(inner).__name__} ({one_line(error)}); give "
            "safetensors or a state dict."
        ) from None


def try_networks(config: RunConfig, networks: ImageModel, shape: tuple[int, ...]) -> None:
    """Tries classes of the user's own on two samples.

    Raises:
        ConfigError: one fails, gives another shape, or gives values that are not finite.
    """
    model = config.model
    sample, latents = torch.zeros(TRIED, *shape), torch.zeros(TRIED, model.latent_dim)
    if isinstance(networks.encoder, FlatPosterior):
        path, expected = model.encoder.class_path, (TRIED, model.latent_dim)
        out = _tried(networks.encoder, sample, f"model.encoder.class {path}", f"samples {_shown(sample.shape)}")
        for name, values in zip(("mean", "log_std"), out, strict=True):
            _check_output(
                values, expected, f"model.encoder.class {path} gives {name}", "a latent", f"(B, {_sizes(model.shape)})"
            )
    if isinstance(networks.generator, OfShape):
        path = model.generator.class_path
        given = f"latents {_shown((TRIED, *model.shape))}"
        out = _tried(networks.generator, latents, f"model.generator.class {path}", given)
        _check_output(out, (TRIED, *shape), f"model.generator.class {path} gives", "a sample", f"(B, {_sizes(shape)})")
    if model.ratio.class_path is not None:
        ratio = build_ratio_network(config)
        path = model.ratio.class_path
        given = f"latents {_shown((TRIED, *model.shape))}"
        stacked = {name: value[None] for name, value in ratio.state_dict().items()}
        inner = next(module for module in ratio.modules() if isinstance(module, OwnRatio))
        out = _tried(inner.network, latents.view(TRIED, *model.shape), f"model.ratio.class {path}", given)
        _check_output(out, (TRIED,), f"model.ratio.class {path} gives", "one value a latent", "(B,)")
        try:
            torch.vmap(lambda weights: torch.func.functional_call(ratio, weights, (latents,)))(stacked)
        except Exception as error:  # the class is the user's
            raise ConfigError(
                f"model.ratio.class {path} cannot be evaluated for several stages together by torch.vmap "
                f"({one_line(error)}); leave out batch statistics, random layers and operations in place."
            ) from error


def _tried(network: nn.Module, given: Tensor, what: str, words: str) -> Tensor | tuple[Tensor, Tensor]:
    try:
        with torch.no_grad():
            out: Tensor | tuple[Tensor, Tensor] = network(given)
    except Exception as error:  # the class is the user's
        raise ConfigError(f"{what} fails on {words}: {type(error).__name__}: {one_line(error)}") from error
    return out


def _check_output(out: object, expected: tuple[int, ...], what: str, of: str, shape: str) -> None:
    if not isinstance(out, Tensor) or tuple(out.shape) != expected:
        found = _shown(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"{what} {found} where {of} needs {shape}; change the class, its arguments, or the latent size."
        )
    if not bool(out.isfinite().all()):
        raise ConfigError(f"{what} values that are not finite numbers; check its weights.")


def _shown(shape: tuple[int, ...] | torch.Size) -> str:
    return f"({', '.join(map(str, shape))})"


def _sizes(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def own_sources(config: RunConfig, storage: Storage) -> OwnSources | None:
    """The sources of the user's own classes, compared with those that the run was begun with.

    Raises:
        ConfigError: a source has changed, and `model.accept_changed` is false.
    """
    blocks = (config.model.generator, config.model.encoder, config.model.ratio)
    paths = [block.class_path for block in blocks if block.class_path is not None]
    if not paths:
        return None
    found = {path: digest for path in paths if (digest := source_sha256(path)) is not None}
    try:
        begun = read_document(storage, NETWORKS_FILE, OwnSources).sha256
    except NotFoundError:
        begun = {}
    except (ValidationError, DamagedError):
        log.warning("%s is damaged: the sources are assumed to be unchanged", storage.url_of(NETWORKS_FILE))
        begun = {}
    for path, digest in found.items():
        if begun.get(path, digest) != digest:
            if not config.model.accept_changed:
                raise ConfigError(
                    f"The source of {path} is not the one that the run {storage.url} was begun with; bring it back, "
                    "choose another run.name, or set model.accept_changed=true to continue with the new one."
                )
            log.warning("the source of %s has changed, as model.accept_changed allows", path)
    return OwnSources(sha256=found)
