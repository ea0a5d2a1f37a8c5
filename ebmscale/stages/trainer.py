"""Trains one stage's network, and keeps the weights of its least held-out loss.

Shapes: B rows, M held-out samples of q, N held-out negatives, Z coordinates.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebmscale.networks import QuadraticHead
from ebmscale.stages.draws import Draws
from ebmscale.stages.pools import Pool
from ebmscale.stages.settings import TrainerSettings
from ebmscale.stages.supplies import Negatives, Supply
from ebmscale.stages.targets import Target

EXPLORES = 0.25
"""The share of a stage at the full rate; along the rest the rate falls."""

NUMBERS = ("updates", "settling_since", "settles_for", "best_loss", "reason")


class Engine(Protocol):
    """What turns a loss into new weights (the engines of training are equals of `Adam`)."""

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients."""
        ...

    def step(self, rate: float) -> float:
        """One update at that rate; the gradient's norm, or NaN where it is not known."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, beside the network's weights."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes what `tensors` gave."""
        ...


class Adam:
    """Adam in this process, with decoupled weight decay (Loshchilov & Hutter 2019) of all but a quadratic head.

    A head has one parameter for every pair of coordinates. Decay would only weaken it.
    """

    def __init__(self, network: nn.Module, weight_decay: float = 0.0):
        heads = [part for part in network.modules() if isinstance(part, QuadraticHead)]
        spared = [parameter for head in heads for parameter in head.parameters()]
        decayed = [one for one in network.parameters() if all(one is not other for other in spared)]
        groups = [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]])

    def backward(self, loss: Tensor) -> None:
        """See `Engine.backward`."""
        loss.backward()

    def step(self, rate: float) -> float:
        """See `Engine.step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return math.nan

    def tensors(self) -> dict[str, Tensor]:
        """Its moments, by name."""
        found = self.optimizer.state_dict()["state"]
        return {f"{place}/{name}": value.clone() for place, one in found.items() for name, value in one.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes moments that `tensors` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            place, _, kind = name.partition("/")
            state.setdefault(int(place), {})[kind] = value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class HeldOut(NamedTuple):
    """Samples that training never sees: of q (M, Z), and negatives."""

    q: Tensor
    negatives: Negatives


class Measured(NamedTuple):
    """A held-out loss: after so many updates of the stage."""

    updates: int
    loss: float


@dataclass
class Trainer:
    """One stage in training.

    Attributes:
        network: the ratio.
        engine: that trains it.
        target: samples of q to train on.
        supply: negatives.
        held_out: what its weights are chosen by.
        settings: how.
        draws: noise.
        name: of the stage's noise.
        updates: done so far.
        settling_since: the update at which the rate began to fall; None while exploring.
        settles_for: how many updates it takes to fall.
        best_loss: least held-out loss, and
        best: the weights that had it.
        curve: of held-out losses.
        reason: why the rate began to fall.
    """

    network: nn.Module
    engine: Engine
    target: Target
    supply: Supply
    held_out: HeldOut
    settings: TrainerSettings
    draws: Draws
    name: str
    updates: int = 0
    settling_since: int | None = None
    settles_for: int = 0
    best_loss: float = math.inf
    best: dict[str, Tensor] = field(default_factory=dict)
    curve: list[Measured] = field(default_factory=list)
    reason: str = ""

    @property
    def is_done(self) -> bool:
        """Whether the rate has fallen to zero."""
        return self.settling_since is not None and self.updates >= self.settling_since + self.settles_for

    @property
    def work(self) -> float:
        """What the updates took, in evaluations of a network at one point; a gradient counts as two."""
        return self.updates * self.settings.batch_size * (6.0 + self.supply.passes)

    def settle(self, reason: str) -> None:
        """Lets the rate fall from now on, for as long as makes exploring `EXPLORES` of the whole."""
        self.settling_since, self.reason = self.updates, reason
        most = self.settings.max_updates - self.updates
        self.settles_for = max(min(round(self.updates * (1 / EXPLORES - 1)), most), 1)

    def run(self, num: int) -> float:
        """At most `num` updates; the held-out loss after them."""
        for _ in range(num):
            if self.is_done:
                break
            self.engine.backward(self._loss())
            self.engine.step(self.settings.rate * self._rate_factor())
            self.updates += 1
        return self.measure()

    def measure(self) -> float:
        """The held-out loss now, which goes into the record; its weights are kept if it is the least."""
        loss = nce_loss(self.network, self.held_out)
        self.curve.append(Measured(self.updates, loss))
        if loss < self.best_loss:
            self.best_loss, self.best = loss, copy.deepcopy(self.network.state_dict())
        return loss

    def conclude(self) -> None:
        """Gives the network the weights of its least held-out loss."""
        if self.best:
            self.network.load_state_dict(self.best)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint."""
        parts = {"network": self.network.state_dict(), "best": self.best, "engine": self.engine.tensors()}
        if isinstance(self.supply, Pool):
            parts["pool"] = {"moving": self.supply.packed()}
        return {f"{part}/{name}": one.clone() for part, found in parts.items() for name, one in found.items()}

    def values(self) -> dict[str, Any]:
        """The numbers of a checkpoint."""
        return {name: getattr(self, name) for name in NUMBERS} | {"curve": [list(one) for one in self.curve]}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Takes what `tensors` and `values` gave; all goes on as if there had been no interruption."""

        def part(name: str) -> dict[str, Tensor]:
            start = f"{name}/"
            return {key.removeprefix(start): one.clone() for key, one in tensors.items() if key.startswith(start)}

        self.network.load_state_dict(part("network"))
        self.best = part("best")
        self.engine.load(part("engine"))
        if isinstance(self.supply, Pool):
            self.supply.unpack(part("pool")["moving"])
        for name in NUMBERS:
            setattr(self, name, values[name])
        self.curve = [Measured(*one) for one in values["curve"]]

    def _rate_factor(self) -> float:
        if self.settling_since is None:
            return 1.0
        progress = (self.updates - self.settling_since) / self.settles_for
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def _loss(self) -> Tensor:
        batch = self.settings.batch_size
        z_q = self.target.draw(self.draws.noise(batch, f"{self.name}/target", self.updates))
        negatives = self.supply.draw(batch, self.updates)
        with torch.autocast(z_q.device.type, torch.bfloat16, enabled=self.settings.bf16):
            f = self.network(torch.cat([z_q, negatives.z]))
        f_q, f_p = f.to(z_q.dtype).split([len(z_q), len(negatives.z)])
        return softplus(-f_q).mean() + (negatives.weights * softplus(f_p)).mean()


@torch.no_grad()
def nce_loss(network: nn.Module, samples: HeldOut) -> float:
    """The loss of telling samples of q from negatives, in nats, summed in float64."""
    f_q, f_p = evaluated(network, samples.q), evaluated(network, samples.negatives.z)
    return float(softplus(-f_q).mean() + (samples.negatives.weights.double() * softplus(f_p)).mean())


@torch.no_grad()
def evaluated(network: nn.Module, z: Tensor) -> Tensor:
    """f at z (M, Z), as (M,) in float64."""
    return torch.cat([network(part).double() for part in z.split(8192)])
