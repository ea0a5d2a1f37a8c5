"""The engine of networks that training leaves alone."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ebmscale.training.engine import Engine, EngineSettings
from ebmscale.world import World


class StillEngine(Engine):
    """Holds a module that has constants alone, and has nothing to train.

    Args:
        module: without parameters.
        settings: the precision.
        world: this process's place.
    """

    def __init__(self, module: nn.Module, settings: EngineSettings, world: World):
        unused = torch.optim.Adam([torch.zeros(1)])
        super().__init__(module.to(settings.dtype), unused, settings, world)
        self._store = SimpleNamespace(is_shared=True)
        self._steps = torch.zeros((), dtype=torch.int64)

    def _forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Nothing."""

    def step(self, rate: float) -> float:
        """Nothing; the gradient's norm is 0."""
        return 0.0

    def _step_count(self) -> list[Tensor]:
        return [self._steps]
