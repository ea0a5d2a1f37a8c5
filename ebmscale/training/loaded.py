"""What the ranks of a run read from a checkpoint, before any part of the run is changed."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ebmscale.density.prior import POWER
from ebmscale.errors import DamagedError, EbmscaleError
from ebmscale.model.checkpoint import SavedCheckpoint
from ebmscale.model.pieces import Span, check_fit, shapes_of
from ebmscale.model.run_documents import ClockState, RunState
from ebmscale.model.saved_part import SavedPart
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.world import World

LATER = ("best",)
"""Parts that checkpoints of earlier versions lack; a run goes on without them."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What a rank has read from a checkpoint.

    Attributes:
        saved: the checkpoint.
        tensors: the wanted spans, by the stem of the part's files.
        state: of the run.
        clock: of the metrics' interval.
        ratios: weights of the frozen ratios, in the order of their stages.
    """

    saved: SavedCheckpoint
    tensors: dict[str, dict[Span, Tensor]]
    state: RunState
    clock: ClockState
    ratios: list[dict[str, Tensor]]


def read_checkpoint(
    store: CheckpointStore,
    name: str,
    parts: Mapping[str, SavedPart],
    ratio_shapes: Mapping[str, torch.Size],
    world: World,
) -> LoadedCheckpoint | None:
    """What this rank needs of a checkpoint (collective). If any rank finds it damaged, it is marked and None is
    returned.

    Args:
        store: of the run's checkpoints.
        name: of the checkpoint.
        parts: of the run, by the stem of their files.
        ratio_shapes: of the weights of a ratio.
        world: the ranks.

    Raises:
        StorageError: the storage cannot be read.
        ConfigError: the checkpoint is of another network.
    """
    loaded: LoadedCheckpoint | None = None
    error: EbmscaleError | None = None
    try:
        saved = store.open(name)
        known = {stem: part for stem, part in parts.items() if stem not in LATER or stem in saved.manifest.tensors}
        for stem, part in known.items():
            part.check_shapes(saved.shapes(stem))
        tensors = {stem: saved.read(stem, part.wanted()) for stem, part in known.items()}
        loaded = LoadedCheckpoint(saved, tensors, saved.state(), saved.clock(), saved.ratios())
        for ratio in loaded.ratios:
            check_fit(shapes_of(ratio), ratio_shapes, f"a frozen ratio of checkpoint {name}", {POWER: ()})
    except EbmscaleError as problem:
        error = problem
    errors = [one for one in world.gather_objects(error) if one is not None]
    fatal = [one for one in errors if not isinstance(one, DamagedError)]
    if fatal:
        raise fatal[0]
    if errors:
        if world.is_first:
            store.mark_damaged(name, str(errors[0]))
        return None
    return loaded
