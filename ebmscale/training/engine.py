"""The engine: it turns a loss into new weights. This file has its methods, its settings and its saved state.

A run has two engines, one for the generator (with its encoder) and one for the ratio network. An engine averages
gradients over the ranks, clips them and makes Adam's update. `PlainEngine` does so in a few lines of torch. It is the
reference that all other engines must equal. `training/engine_deepspeed.py` shards the same state over the ranks. An
engine saves its state in a *canonical* form: whole fp32 tensors by name. So any engine restores it on any number of
ranks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ebmscale.errors import ConfigError
from ebmscale.model.pieces import Piece, Span, piece, share_of, whole_spans
from ebmscale.training.adam import MOMENTS
from ebmscale.world import World

WEIGHTS = "weights"
MAX_BUCKET = 50_000_000
"""Gradient elements that DeepSpeed reduces at once."""


@dataclass(frozen=True)
class EngineSettings:
    """Which engine, and in which precision it computes.

    Attributes:
        kind: plain torch, or DeepSpeed.
        zero_stage: what DeepSpeed shards over the ranks: 0 nothing, 1 Adam's state, 2 gradients too, 3 weights too.
        precision: bf16 keeps the module's weights in bf16 and Adam's master weights and moments in fp32.
    """

    kind: Literal["plain", "deepspeed"] = "plain"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """The type that the module's weights have and its forward pass computes in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


class Store(Protocol):
    """Access by name to the fp32 training state, wherever an engine keeps it.

    `kind` is `weights`, `exp_avg` or `exp_avg_sq`. `is_shared` says whether every rank holds the whole of it.
    """

    is_shared: bool

    def read(self, name: str, kind: str) -> Tensor:
        """A whole fp32 copy, on every rank (collective)."""

    def held(self, name: str, kind: str) -> tuple[int, Tensor]:
        """The elements that this rank holds: where they begin in the flattened tensor, and a flat view (n,) of them."""

    def spread(self, name: str) -> None:
        """Copies master weights that were overwritten to the module, on every rank (collective)."""


class Engine(ABC):
    """Trains one module. Every method but the forward pass is collective: all ranks call it.

    The gradient of an update is the *average over ranks* of the local gradients. Scale a loss accordingly.
    Gradients with respect to inputs (chains) are taken on a copy that loads `working_weights`, not through an engine.

    Attributes:
        module: the bare module. Its weights may be sharded or of low precision: see `full_weights`, `working_weights`.
    """

    def __init__(self, module: nn.Module, adam: torch.optim.Adam, settings: EngineSettings, world: World):
        self.module = module
        self._adam, self._settings, self._world = adam, settings, world
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._buffers = [name for name, _ in module.named_buffers() if name in module.state_dict()]
        self._store: Store

    def __call__(self, *inputs: Any) -> Any:
        """The training forward pass. Floating inputs are cast to the engine's precision, floating outputs to fp32."""
        return cast(self._forward(*cast(inputs, self._settings.dtype)), torch.float32)

    @abstractmethod
    def _forward(self, *inputs: Any) -> Any:
        """The module's forward pass, with the engine's own hooks."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of a scalar loss. Several calls before a step add up."""

    @abstractmethod
    def step(self, rate: float) -> float:
        """Averages gradients over ranks, clips, makes one Adam update and clears the gradients.

        A parameter without a gradient counts as one with gradient zero. If the gradient is not finite, nothing is
        updated and no update is counted. Floating buffers become those of rank 0.

        Args:
            rate: the learning rate of this update.

        Returns:
            The global norm of the averaged gradient before clipping, the same on every rank; inf or nan if it is
            not finite.
        """

    def full_weights(self) -> dict[str, Tensor]:
        """Whole fp32 master weights and buffers (integer buffers keep their type) by name, as detached copies."""
        weights = {name: self._store.read(name, WEIGHTS) for name in self._shapes}
        return weights | {name: cast(self.module.get_buffer(name).clone(), torch.float32) for name in self._buffers}

    def working_weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers in the precision of the forward pass. A sampling copy loads them.

        This is much cheaper than `full_weights`: only ZeRO 3 has to communicate. The tensors are valid until the next
        step, and must not be changed.
        """
        return self.module.state_dict()

    def state(self) -> dict[str, Tensor]:
        """A copy of the canonical state, whole on every rank. It does not depend on engine, ZeRO stage and number of
        ranks.

        Returns:
            `weights/NAME` for parameters and buffers, `exp_avg/NAME` and `exp_avg_sq/NAME` for parameters, all in
            the parameter's shape, and `step`, the number of updates (int64 scalar).
        """
        weights = {f"{WEIGHTS}/{name}": value for name, value in self.full_weights().items()}
        moments = {f"{kind}/{name}": self._store.read(name, kind) for kind in MOMENTS for name in self._shapes}
        return weights | moments | {"step": self._step_count()[0].to("cpu", torch.int64).clone()}

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor of the canonical state."""
        shapes = {f"{kind}/{name}": shape for kind in (WEIGHTS, *MOMENTS) for name, shape in self._shapes.items()}
        shapes |= {f"{WEIGHTS}/{name}": self.module.get_buffer(name).shape for name in self._buffers}
        return shapes | {"step": torch.Size(())}

    def share(self) -> list[Piece]:
        """This rank's share of the canonical state, without communication. Together the shares of all ranks cover it
        once.

        The pieces are views of the live state where that is possible, so copy them before the next step.
        """
        held = [self._piece(name, kind) for kind in (WEIGHTS, *MOMENTS) for name in self._shapes]
        if self._store.is_shared:
            held = share_of(held, self._world.rank, self._world.size)
        if self._world.is_first:
            held += [
                piece(f"{WEIGHTS}/{name}", cast(self.module.get_buffer(name), torch.float32)) for name in self._buffers
            ]
            held.append(piece("step", self._step_count()[0].to("cpu", torch.int64)))
        return [one for one in held if one.span.length]

    def wanted(self) -> list[Span]:
        """The spans that `restore` needs on this rank."""
        held = [self._piece(name, kind).span for kind in (WEIGHTS, *MOMENTS) for name in self._shapes]
        buffers = {f"{WEIGHTS}/{name}": self.module.get_buffer(name).shape for name in self._buffers}
        return [span for span in held if span.length] + whole_spans(buffers | {"step": torch.Size(())})

    @torch.no_grad()
    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """Restores the wanted spans of a saved state. Any engine, ZeRO stage and number of ranks may have saved it."""
        for kind in (WEIGHTS, *MOMENTS):
            for name in self._shapes:
                span, held = self._piece(name, kind)
                if span.length:
                    held.copy_(values[span])
        for name in self._shapes:
            self._store.spread(name)
        for name in self._buffers:
            buffer = self.module.get_buffer(name)
            buffer.copy_(values[Span(f"{WEIGHTS}/{name}", 0, buffer.numel())].view_as(buffer))
        for count in self._step_count():
            count.fill_(int(values[Span("step", 0, 1)]))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores the result of `state` from any engine, ZeRO stage and number of ranks.

        Raises:
            ConfigError: the state belongs to another network.
        """
        self.check_shapes({name: value.shape for name, value in state.items()})
        flat = {name: value.reshape(-1) for name, value in state.items()}
        self.restore({span: flat[span.name][span.start : span.start + span.length] for span in self.wanted()})

    def check_shapes(self, found: Mapping[str, Sequence[int]]) -> None:
        """Compares the shapes of a saved state with those of this engine's.

        Raises:
            ConfigError: the state belongs to another network.
        """
        shapes = self.shapes()
        wrong = shapes.keys() ^ found.keys() or {n for n, s in shapes.items() if torch.Size(found[n]) != s}
        if wrong:
            raise ConfigError(
                f"The saved state belongs to another network ({len(wrong)} tensors differ, such as {min(wrong)}): "
                "use the model settings that it was trained with."
            )

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        """Restarts training from new weights (and buffers), with Adam's moments and count of updates at zero.

        Args:
            weights: by name, as `full_weights` returns them and `nn.Module.state_dict` does.

        Raises:
            ConfigError: the weights belong to another network.
        """
        zeros = {f"{kind}/{name}": torch.zeros(shape) for kind in MOMENTS for name, shape in self._shapes.items()}
        self.load_state(
            {f"{WEIGHTS}/{name}": value for name, value in weights.items()} | zeros | {"step": torch.tensor(0)}
        )

    def _piece(self, name: str, kind: str) -> Piece:
        start, values = self._store.held(name, kind)
        return Piece(Span(f"{kind}/{name}", start, values.numel()), values)

    def _step_count(self) -> list[Tensor]:
        """Adam's own counts of updates, all equal."""
        return [state["step"] for state in self._adam.state.values()]


def cast(value: Any, dtype: torch.dtype) -> Any:
    """`value` with its floating tensors in another floating type. It enters tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: cast(item, dtype) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(cast(item, dtype) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(cast(item, dtype) for item in value)
    return value
