"""What a metric is: what is measured of some chunks of a set, and what all parts together tell.

The parts are measured by the ranks of a world, or by the workers of a job in parts. Both are numbered from 0, and part
r of R has the chunks r, r + R, ... Shapes: N images of a part.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ebmscale.data.chunks import CHUNK_SAMPLES, Chunk
from ebmscale.evaluate.images import ImageSet

Tensors = dict[str, Tensor]

ROW = "row"
"""The numbers (N,) of a part's images in the whole set."""


class Measure(Protocol):
    """A metric of one model."""

    def part(self, images: ImageSet) -> Tensors:
        """What is measured of the chunks that are this rank's, as tensors by name.

        Raises:
            DivergenceError: the model returns values that are not finite.
        """
        ...

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """The values by name, from the parts of all ranks in their order (collective)."""
        ...


def rows_of(chunk: Chunk) -> Tensor:
    """The numbers of a chunk's images in the whole set, (N,) int64."""
    return chunk.index * CHUNK_SAMPLES + torch.arange(len(chunk.images))


def in_order(parts: Sequence[Tensors], name: str, row: str = ROW) -> Tensor:
    """The tensor of that name of all parts, one row for each image, in the order of the images."""
    rows = torch.cat([part[row] for part in parts if row in part])
    return torch.cat([part[name] for part in parts if name in part])[rows.argsort()]


def stacked(rows: Sequence[Tensors]) -> Tensors:
    """The tensors of several chunks as those of one part; empty if there are no chunks."""
    return {name: torch.cat([one[name] for one in rows]) for name in rows[0]} if rows else {}
