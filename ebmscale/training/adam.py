"""Adam with decoupled weight decay (Loshchilov & Hutter 2019), as both engines use it: settings, state and rate."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class OptimizerSettings:
    """Adam's settings.

    Attributes:
        rate: the learning rate before any schedule. `Engine.step` gets the rate of each update.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled: every update also multiplies the weights by 1 - rate * weight_decay.
        clip_norm: largest global norm of the averaged gradient; None leaves gradients alone.
        factors: factors of the rate, by prefix of the parameters' names.
    """

    rate: float
    betas: tuple[float, float]
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    factors: Mapping[str, float] = field(default_factory=dict)

    def groups(self, names: Iterable[str]) -> dict[float, list[str]]:
        """The groups of Adam: the names of the parameters by factor, in their order."""
        found: dict[float, list[str]] = {}
        for name in names:
            factor = next((value for prefix, value in self.factors.items() if name.startswith(prefix)), 1.0)
            found.setdefault(factor, []).append(name)
        return found


def make_adam(tensors: Mapping[str, Tensor], optimizer: OptimizerSettings) -> torch.optim.AdamW:
    """The Adam that both engines use, for tensors by name."""
    groups = [
        {"params": [tensors[name] for name in names], "factor": factor}
        for factor, names in optimizer.groups(tensors).items()
    ]
    return torch.optim.AdamW(
        groups,
        optimizer.rate,
        betas=optimizer.betas,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        fused=True,  # one pass over the memory
    )


def start_adam(adam: torch.optim.Adam, tensors: Iterable[Tensor]) -> None:
    """Gives Adam the state that its first update would make, so that the state can be read and written before."""
    for tensor in tensors:
        adam.state[tensor] = {"step": torch.zeros((), device=tensor.device)} | {
            kind: torch.zeros_like(tensor) for kind in MOMENTS
        }


def set_rate(adam: torch.optim.Adam, rate: float) -> None:
    """Sets the learning rate of the next update, before the groups' factors."""
    for group in adam.param_groups:
        group["lr"] = rate * group["factor"]
