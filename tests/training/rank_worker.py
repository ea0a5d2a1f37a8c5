"""One rank of a run whose images are NaN, on the last rank alone, in the batch that ends at BAD.

python rank_worker.py CONFIG BAD
"""

import sys
from typing import Any

import torch

from ebmscale.config import load_config
from ebmscale.model.pixels import to_pixels
from ebmscale.stop import StopSignal
from ebmscale.training import loop, update
from ebmscale.training.view import View
from ebmscale.world import World


def main() -> None:
    config, bad_end = load_config(sys.argv[1]), int(sys.argv[2])
    world = World.from_environment("cpu")
    ends: list[int] = []

    class Watching(View):
        def batch(self, batch: Any) -> None:
            ends.append(batch.end)

    def pixels(images: torch.Tensor) -> torch.Tensor:
        is_bad = bool(ends) and ends[-1] == bad_end and world.rank == world.size - 1
        return to_pixels(images) * (torch.nan if is_bad else 1.0)

    update.to_pixels = pixels  # type: ignore[attr-defined]
    loop.train(config, Watching(quiet=True), world, StopSignal())


if __name__ == "__main__":
    main()
