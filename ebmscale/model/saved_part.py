"""What a checkpoint is made of: parts of tensors, which all ranks write and read together, and plain values."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ebmscale.model.pieces import Piece, Span


class SavedPart(Protocol):
    """Named tensors that are spread over the ranks in any way.

    The shares of all ranks tile them. Another number of ranks restores them from other spans.
    """

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every whole tensor by name."""
        ...

    def check_shapes(self, found: Mapping[str, Sequence[int]]) -> None:
        """Refuses saved tensors of other names or shapes with a ConfigError."""
        ...

    def share(self) -> list[Piece]:
        """What this rank writes, as views into the live state: copy them before the next update."""
        ...

    def wanted(self) -> list[Span]:
        """The spans that `restore` needs on this rank."""
        ...

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """Takes the wanted spans, whatever number of ranks saved them (collective)."""
        ...
