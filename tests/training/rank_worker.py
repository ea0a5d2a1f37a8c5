"""One rank of a run whose images are NaN, on the last rank alone, in the batch that ends at BAD.

python rank_worker.py CONFIG BAD
"""

import sys
from typing import Any

import pytest
import torch

from ebmscale.config import RunConfig, load_config
from ebmscale.model.pixels import to_pixels
from ebmscale.stop import StopSignal
from ebmscale.training import update
from ebmscale.training.loop import train
from ebmscale.training.view import View
from ebmscale.world import World


def train_with_a_bad_batch(config: RunConfig, bad_end: int, world: World) -> None:
    ends: list[int] = []

    class Watching(View):
        def batch(self, batch: Any) -> None:
            ends.append(batch.end)

    def pixels(images: torch.Tensor) -> torch.Tensor:
        is_bad = bool(ends) and ends[-1] == bad_end and world.rank == world.size - 1
        return to_pixels(images) * (torch.nan if is_bad else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "to_pixels", pixels)
        train(config, Watching(quiet=True), world, StopSignal())


def main() -> None:
    train_with_a_bad_batch(load_config(sys.argv[1]), int(sys.argv[2]), World.from_environment("cpu"))


if __name__ == "__main__":
    main()
