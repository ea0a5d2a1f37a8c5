"""The plain torch engine: the reference that all other engines must equal."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ebmscale.training.adam import OptimizerSettings, make_adam, set_rate, start_adam
from ebmscale.training.engine import WEIGHTS, Engine, EngineSettings
from ebmscale.training.rank_tensors import average_, clip_, copy_buffers_from_first
from ebmscale.world import World


class WholeStore:
    """The state of an Adam that holds whole fp32 master weights on every rank.

    Args:
        parameters: the module's parameters by name.
        masters: the tensors that Adam updates, by the same names; in fp32 the parameters themselves.
        adam: their optimiser, whose state has been started.
    """

    def __init__(self, parameters: Mapping[str, Tensor], masters: Mapping[str, Tensor], adam: torch.optim.Adam):
        self.is_shared = True
        self._parameters, self._masters, self._adam = parameters, masters, adam

    def read(self, name: str, kind: str) -> Tensor:
        """A copy of the master weight or of its moment."""
        return self._tensor(name, kind).detach().clone()

    def held(self, name: str, kind: str) -> tuple[int, Tensor]:
        """The whole tensor, because this rank holds all of it."""
        return 0, self._tensor(name, kind).detach().view(-1)

    @torch.no_grad()
    def spread(self, name: str) -> None:
        """Copies a master weight to the module."""
        self._parameters[name].copy_(self._masters[name])

    def _tensor(self, name: str, kind: str) -> Tensor:
        master = self._masters[name]
        return master if kind == WEIGHTS else self._adam.state[master][kind]


class PlainEngine(Engine):
    """Plain torch: the whole state is on every rank, and one all-reduce averages the flat gradient."""

    def __init__(self, module: nn.Module, optimizer: OptimizerSettings, settings: EngineSettings, world: World):
        weights = {name: value.detach().float().clone() for name, value in module.named_parameters()}
        module = module.to(settings.dtype)
        self._parameters = dict(module.named_parameters())
        self._masters: Mapping[str, Tensor] = self._parameters if settings.precision == "fp32" else weights
        self._clip_norm = optimizer.clip_norm
        super().__init__(module, make_adam(self._masters, optimizer), settings, world)
        start_adam(self._adam, self._masters.values())
        self._store = WholeStore(self._parameters, self._masters, self._adam)

    def _forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """See `Engine.backward`."""
        loss.backward()

    @torch.no_grad()
    def step(self, rate: float) -> float:
        """See `Engine.step`."""
        gradients = [
            torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float()
            for p in self._parameters.values()
        ]
        average_(gradients, self._world)
        norm = clip_(gradients, self._clip_norm)
        if math.isfinite(norm):
            for master, gradient in zip(self._masters.values(), gradients, strict=True):
                master.grad = gradient
            set_rate(self._adam, rate)
            self._adam.step()
            for name, parameter in self._parameters.items():
                parameter.copy_(self._masters[name])
        for tensor in (*self._masters.values(), *self._parameters.values()):
            tensor.grad = None
        copy_buffers_from_first(self.module, self._world)
        return norm
