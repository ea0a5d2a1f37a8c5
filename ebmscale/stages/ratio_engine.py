"""What a stage needs of the engine that trains its network; the engines of `training` have it."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from ebmscale.model.saved_part import SavedPart


class RatioEngine(SavedPart, Protocol):
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
