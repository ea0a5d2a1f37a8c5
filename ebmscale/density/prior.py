"""The prior as a product of density ratios: log p_k(z) = log p_0(z) + sum_{j<=k} f_j(z) - log Z_k.

Method: Xiao & Han, NeurIPS 2022. The whole project uses one convention: `log_ratio` = log q - log p (posterior over
prior), `energy` = -log density up to a constant, `score` = gradient of the log density.

Shapes: N points, Z latent, K stages.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ebmscale.density.langevin import differentiate

POWER = "power"
"""The name of the powers among the tensors of a sequence and of a stage."""


class Density(Protocol):
    """A normalised density that can be sampled: what `fit_ratio` takes for p.

    Attributes:
        dim: Z.
    """

    dim: int

    def log_density(self, z: Tensor) -> Tensor:
        """log p at z (N, Z), as (N,); differentiable in z."""
        ...

    def from_noise(self, noise: Tensor) -> Tensor:
        """Exact samples (N, Z) from standard normal noise (N, Z)."""
        ...


class Base(Density, Protocol):
    """A base density p_0, with the methods that a prior needs.

    A subclass implements the members of `Density`. The other members have defaults. The defaults are right where ratio
    networks see the points themselves.

    Attributes:
        log_volume: log |det dz/dx| of the coordinates x that ratio networks and chains see.
        is_standard: whether it is N(0, I).
        is_known: whether `log_density` is a density; False where only samples are known.
    """

    log_volume: float = 0.0
    is_standard: bool = False
    is_known: bool = True

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (N,) and score (N, Z) at z (N, Z), without a graph of them."""
        return differentiate(self.log_density)(z)

    def coordinates(self, z: Tensor) -> Tensor:
        """The coordinates (..., Z) of points z (..., Z) that ratio networks and chains see."""
        return z

    def from_coordinates(self, x: Tensor) -> Tensor:
        """The points (N, Z) with coordinates x (N, Z)."""
        return x

    def score_from(self, score: Tensor) -> Tensor:
        """The gradient in z (N, Z) of a function with the gradient `score` (N, Z) in the coordinates."""
        return score

    def in_coordinates(self) -> "Base":
        """The density of the coordinates; the same object where they are the points themselves."""
        return self

    def to(self, device: torch.device | str) -> "Base":
        """The same density on another device."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """What was fitted, by name, as checkpoints and exports keep it; empty where nothing is."""
        return {}


class StandardNormal(Base):
    """The standard normal density N(0, I) in `dim` dimensions.

    Args:
        dim: Z.

    Example:
        >>> StandardNormal(2).log_density(torch.zeros(1, 2))  # -log(2 pi)
        tensor([-1.8379])
    """

    is_standard = True

    def __init__(self, dim: int):
        self.dim = dim

    def log_density(self, z: Tensor) -> Tensor:
        """See `Base.log_density`."""
        return -0.5 * z.square().sum(dim=1) - 0.5 * self.dim * math.log(2 * math.pi)

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `Base.evaluate`."""
        return self.log_density(z), -z

    def from_noise(self, noise: Tensor) -> Tensor:
        """See `Base.from_noise`."""
        return noise


class RatioSequence:
    """A base density times K frozen ratios. The K networks are evaluated together as one batched network.

    A stage may also raise the prior before it to a power: p_k is proportional to p_{k-1}^b_k e^(f_k). So f_j counts
    b_{j+1} ... b_K times in p_K, and log p_0 counts b_1 ... b_K times. A prefix has the powers of its own stages alone,
    so it is p_k itself.

    It is immutable: `append` returns a new sequence. The normaliser is not known here, so every log density is known
    up to the constant log Z_K.

    Args:
        base: p_0.
        network: a ratio network z (N, Z) -> f(z) (N,). Its structure is copied; its weights are not used.
        tensors: the frozen weights, with the K values of every parameter stacked to (K, ...), and `power` (K,) where a
            power is not 1. None or empty for K = 0.

    Attributes:
        weights: of the networks, (K, ...) by name.
        powers: b_1, ..., b_K in float64 (K,); None where all are 1.
    """

    def __init__(self, base: Base, network: nn.Module, tensors: Mapping[str, Tensor] | None = None):
        self.base = base
        self.network = copy.deepcopy(network).requires_grad_(False)
        found = {name: tensor.detach() for name, tensor in (tensors or {}).items()}
        powers = found.pop(POWER, None)
        self.weights = found
        self.powers = None if powers is None else powers.double()

    @property
    def num_stages(self) -> int:
        """K."""
        return len(next(iter(self.weights.values()))) if self.weights else 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that is frozen, as the constructor takes it."""
        return self.weights if self.powers is None else {**self.weights, POWER: self.powers}

    @property
    def factors(self) -> Tensor | None:
        """How often f_1, ..., f_K count in p_K, in float64 (K,); None where each counts once."""
        if self.powers is None:
            return None
        return torch.cat([self.powers[1:].flip(0).cumprod(0).flip(0), torch.ones_like(self.powers[:1])])

    @property
    def base_power(self) -> float:
        """How often log p_0 counts in p_K."""
        return 1.0 if self.powers is None else float(self.powers.prod())

    def append(self, weights: Mapping[str, Tensor], power: float = 1.0) -> "RatioSequence":
        """The sequence with one more ratio.

        Args:
            weights: a state dict of the network.
            power: of the prior so far.
        """
        new = {name: weights[name].detach().clone() for name in self.network.state_dict()}
        if power != 1:
            device = next(iter(new.values())).device
            new[POWER] = torch.tensor(power, dtype=torch.float64, device=device)
        before = [self.stage_tensors(stage) for stage in range(1, self.num_stages + 1)]
        return RatioSequence(self.base, self.network, stacked_stages([*before, new]))

    def prefix(self, num_stages: int) -> "RatioSequence":
        """The prior after the first `num_stages` stages.

        Raises:
            ValueError: the sequence has fewer stages.
        """
        if not 0 <= num_stages <= self.num_stages:
            raise ValueError(f"the prior has {self.num_stages} stages, so there is no prefix of {num_stages}")
        kept = {name: tensor[:num_stages] for name, tensor in self.tensors.items()} if num_stages else None
        return RatioSequence(self.base, self.network, kept)

    def last(self) -> "RatioSequence":
        """The base with the last ratio alone, without its power."""
        return self.prefix(0).append(self.stage_weights(self.num_stages))

    @property
    def last_power(self) -> float:
        """b_K, the power of p_{K-1} in p_K."""
        return 1.0 if self.powers is None else float(self.powers[-1])

    def stage_weights(self, stage: int) -> dict[str, Tensor]:
        """The state dict of the ratio frozen by stage 1 <= `stage` <= K."""
        return {name: tensor[stage - 1] for name, tensor in self.weights.items()}

    def stage_tensors(self, stage: int) -> dict[str, Tensor]:
        """All that stage 1 <= `stage` <= K froze: the state dict of its ratio, and `power` () where it is not 1."""
        found = {name: tensor[stage - 1] for name, tensor in self.tensors.items()}
        return found if POWER in found and found[POWER] != 1 else self.stage_weights(stage)

    def coordinates(self, z: Tensor) -> Tensor:
        """The inputs (..., Z) of the ratio networks at points (..., Z): the coordinates of the base."""
        return self.base.coordinates(z)

    def from_coordinates(self, points: Tensor) -> Tensor:
        """The points (N, Z) that have these coordinates."""
        return self.base.from_coordinates(points)

    def in_coordinates(self) -> "RatioSequence":
        """The density of the `coordinates`; this sequence itself where they are the points."""
        inside = self.base.in_coordinates()
        return self if inside is self.base else self.on_base(inside)

    def on_base(self, base: Base) -> "RatioSequence":
        """The same ratios on another base."""
        return RatioSequence(base, self.network, self.tensors)

    def to(self, device: torch.device | str) -> "RatioSequence":
        """The same sequence on another device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return RatioSequence(self.base.to(device), self.network, tensors)

    def log_ratios(self, z: Tensor) -> Tensor:
        """f_1(z), ..., f_K(z) for z (N, Z), each as often as it counts in p_K, as (K, N)."""
        if not self.weights:
            return z.new_zeros(0, len(z))
        z, factors = self.coordinates(z), self.factors
        values = torch.vmap(lambda weights: functional_call(self.network, weights, (z,)))(self.weights)
        return values if factors is None else factors[:, None].to(values) * values

    def log_weight(self, z: Tensor) -> Tensor:
        """log p_K(z) + log Z_K - log p_0(z) for z (N, Z), as (N,): the sum of all ratios and of what powers add.

        Powers are those of densities of the coordinates, so log Z_K is the same in the coordinates.
        """
        value = self.log_ratios(z).sum(dim=0)
        if self.powers is None:
            return value
        of_base = (self.powers.prod() - 1).to(value)  # a tensor: no synchronisation with a GPU
        return value + of_base * (self.base.log_density(z) + self.base.log_volume)

    def log_density(self, z: Tensor) -> Tensor:
        """log p_K(z) + log Z_K for z (N, Z), as (N,); differentiable in z."""
        value = self.base.log_density(z)
        return value + self.log_weight(z) if self.weights else value

    def energy(self, z: Tensor) -> Tensor:
        """-log p_K(z) up to a constant, as (N,): higher is less likely."""
        return -self.log_density(z)

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (N,) up to log Z_K, and score (N, Z): the sequence as a Langevin target."""
        return differentiate(self.log_density)(z)

    def score(self, z: Tensor) -> Tensor:
        """Gradient of log p_K at z (N, Z), as (N, Z)."""
        return self.evaluate(z)[1]


def stacked_stages(stages: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a sequence from those of its stages (see `RatioSequence.stage_tensors`)."""
    if any(POWER in one for one in stages):
        devices = [next(iter(one.values())).device for one in stages]
        ones = (torch.ones((), dtype=torch.float64, device=device) for device in devices)
        stages = [{POWER: power, **one} for power, one in zip(ones, stages, strict=True)]
    return {name: torch.stack([one[name] for one in stages]) for name in (stages[0] if stages else ())}
