"""The tensors of a model in a checkpoint. The state of the optimisers is not read.

Shapes: K stages.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.density.prior import POWER, stacked_stages
from ebmscale.errors import DamagedError
from ebmscale.model.build import build_live_networks, build_on_meta
from ebmscale.model.checkpoint import AVERAGE, SavedCheckpoint
from ebmscale.model.pieces import check_fit, shapes_of, whole_spans
from ebmscale.model.prior_base import BASE, check_base


class SavedTensors(NamedTuple):
    """By name: the tensors of the networks, those of the base density, and the stacked ratios (K, ...)."""

    networks: dict[str, Tensor]
    base: dict[str, Tensor]
    ratios: dict[str, Tensor]


def saved_tensors(config: RunConfig, saved: SavedCheckpoint, image_shape: tuple[int, ...]) -> SavedTensors:
    """Reads a model, with averaged weights if the run has them.

    Args:
        config: of the run.
        saved: the checkpoint.
        image_shape: (C, H, W), as the checkpoint says.

    Raises:
        ConfigError: there is no architecture for images of that shape.
        DamagedError: the checkpoint is damaged, is not of this configuration, or holds weights that are not finite.
    """
    if len(image_shape) != 3 and config.model.generator.class_path is None and not config.model.is_identity:
        raise DamagedError(
            f"state.json of checkpoint {saved.name} is damaged: its images have {len(image_shape)} axes."
        )
    networks, ratio = build_on_meta(config, image_shape)
    ratio_shapes = shapes_of(ratio.state_dict())
    if config.averages_weights:
        weights = _read(saved, AVERAGE, "", shapes_of(networks.state_dict()))
    else:
        weights = _read(saved, "generator", "weights/", shapes_of(networks.state_dict()))
    if config.num_live:
        if config.num_live > len(saved.shapes("ratio")):
            raise DamagedError(f"Checkpoint {saved.name} has fewer ratios than the {config.num_live} configured.")
        live = {f"nets.{k}.{name}": size for k in range(config.num_live) for name, size in ratio_shapes.items()}
        ratios = build_live_networks(config).stacked(_read(saved, "ratio", "weights/", live))
    else:
        frozen = saved.ratios()
        for one in frozen:
            check_fit(shapes_of(one), ratio_shapes, f"a frozen ratio of checkpoint {saved.name}", {POWER: ()})
        ratios = stacked_stages(frozen)
    base: dict[str, Tensor] = {}
    if config.prior.base == "moments":
        shapes = {name.removeprefix(BASE): s for name, s in saved.shapes("chains").items() if name.startswith(BASE)}
        check_base(config.model.latent_dim, shapes)
        base = _read(saved, "chains", BASE, shapes)
    return SavedTensors(weights, base, ratios)


def _read(saved: SavedCheckpoint, stem: str, prefix: str, expected: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The whole tensors of a stem whose names begin with a prefix, by their names without the prefix."""
    shapes = {name: size for name, size in saved.shapes(stem).items() if name.startswith(prefix)}
    own = {name.removeprefix(prefix): size for name, size in shapes.items()}
    check_fit(own, expected, f"{stem} of checkpoint {saved.name}")
    flat = {span.name: values for span, values in saved.read(stem, whole_spans(shapes)).items()}
    return {name.removeprefix(prefix): flat[name].view(size) for name, size in shapes.items()}
