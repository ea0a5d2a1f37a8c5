"""The weights of a stage's least held-out loss, each rank its share of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ebmscale.errors import ConfigError
from ebmscale.model.pieces import Piece, Span, assemble, whole_spans
from ebmscale.stages.ratio_engine import RatioEngine
from ebmscale.world import World

WEIGHTS = "weights/"
"""Prefix of the weights' names in the state of an engine."""


class BestWeights:
    """Keeps the weights of an engine that had the least loss (a `SavedPart`).

    A rank keeps what it holds of them, so keeping needs no communication.

    Args:
        engine: of the ratio network.
        world: this process's place.

    Attributes:
        loss: the least held-out loss of this round of the stage, in nats; None before there is one.
        position: `samples_seen` when it was measured.
    """

    def __init__(self, engine: RatioEngine, world: World):
        self.loss: float | None = None
        self.position = 0
        self._engine, self._world = engine, world
        self._kept: list[Piece] = []

    def offer(self, loss: float, position: int) -> None:
        """Keeps the engine's weights if their held-out loss is finite and the least so far."""
        if math.isfinite(loss) and (self.loss is None or loss < self.loss):
            self.loss, self.position = loss, position
            self._kept = [Piece(span, values.clone()) for span, values in self._now()]

    def clear(self) -> None:
        """Forgets them, as a new round begins."""
        self.loss, self.position, self._kept = None, 0, []

    def whole(self) -> dict[str, Tensor]:
        """The whole weights by name, as `RatioEngine.full_weights` gives those of now (collective)."""
        parts = self._world.gather_objects([(one.span, one.values.cpu()) for one in self._kept])
        shapes = self.shapes()
        found = assemble(whole_spans(shapes), (Piece(*one) for part in parts for one in part))
        return {
            span.name.removeprefix(WEIGHTS): values.view(shapes[span.name]).to(self._world.device)
            for span, values in found.items()
        }

    def values(self) -> dict[str, Any] | None:
        """The plain values of a checkpoint."""
        return None if self.loss is None else {"loss": self.loss, "position": self.position}

    def load_values(self, values: Mapping[str, Any] | None) -> None:
        """Takes what `values` gave, before `restore`."""
        self.clear()
        if values is not None:
            self.loss, self.position = values["loss"], values["position"]

    def shapes(self) -> dict[str, torch.Size]:
        """See `SavedPart.shapes`."""
        return {name: size for name, size in self._engine.shapes().items() if name.startswith(WEIGHTS)}

    def check_shapes(self, found: Mapping[str, Sequence[int]]) -> None:
        """See `SavedPart.check_shapes`."""
        if {name: torch.Size(size) for name, size in found.items()} != self.shapes():
            raise ConfigError(
                "The best weights of the checkpoint belong to another ratio network: use the model settings that it "
                "was trained with."
            )

    def share(self) -> list[Piece]:
        """See `SavedPart.share`; the weights of now where none are kept."""
        return self._now() if self.loss is None else self._kept

    def wanted(self) -> list[Span]:
        """See `SavedPart.wanted`."""
        return [one.span for one in self._now()]

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """See `SavedPart.restore`."""
        if self.loss is not None:
            self._kept = [Piece(span, values[span].clone()) for span in self.wanted()]

    def _now(self) -> list[Piece]:
        return [one for one in self._engine.share() if one.span.name.startswith(WEIGHTS)]
