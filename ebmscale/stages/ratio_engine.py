"""What a stage needs of the engine that trains its network; the engines of `training` have it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ebmscale.model.pieces import Piece, Span


class RatioEngine(Protocol):
    """Trains one ratio network; see `training.engine.Engine` for what each method promises."""

    module: nn.Module

    def __call__(self, *inputs: Any) -> Any:
        """The network's values, for training."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a scalar loss."""

    def step(self, rate: float) -> float:
        """One update; the gradient's norm before clipping, not finite where the update was left out."""

    def full_weights(self) -> dict[str, Tensor]:
        """Whole fp32 weights by name, as copies."""

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        """Starts again from new weights."""

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor of the saved state."""

    def check_shapes(self, found: Mapping[str, Sequence[int]]) -> None:
        """Refuses the saved state of another network with a ConfigError."""

    def share(self) -> list[Piece]:
        """This rank's share of the state to save."""

    def wanted(self) -> list[Span]:
        """The spans of a saved state that this rank needs."""

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """Takes these spans."""
