"""The prior as a product of density ratios: log p_k(z) = log p_0(z) + sum_{j<=k} f_j(z) - log Z_k.

Method: Xiao & Han, NeurIPS 2022. The whole project uses one convention: `log_ratio` = log q - log p (posterior over
prior), `energy` = -log density up to a constant, `score` = gradient of the log density.

Shapes: N points, Z latent, K stages.
"""

import copy
import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ebmscale.density.langevin import differentiate


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

    It is immutable: `append` returns a new sequence. The normaliser is not known here, so every log density is known
    up to the constant log Z_K.

    Args:
        base: p_0.
        network: a ratio network z (N, Z) -> f(z) (N,). Its structure is copied; its weights are not used.
        weights: the frozen weights, with the K values of every parameter stacked to (K, ...). None or empty for K = 0.
    """

    def __init__(self, base: Base, network: nn.Module, weights: Mapping[str, Tensor] | None = None):
        self.base = base
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.weights = {name: tensor.detach() for name, tensor in (weights or {}).items()}

    @property
    def num_stages(self) -> int:
        """K."""
        return len(next(iter(self.weights.values()))) if self.weights else 0

    def append(self, weights: Mapping[str, Tensor]) -> "RatioSequence":
        """The sequence with one more ratio, whose weights are a state dict of the network."""
        new = {name: weights[name].detach().clone().unsqueeze(0) for name in self.network.state_dict()}
        if self.weights:
            new = {name: torch.cat([self.weights[name], tensor]) for name, tensor in new.items()}
        return RatioSequence(self.base, self.network, new)

    def prefix(self, num_stages: int) -> "RatioSequence":
        """The prior after the first `num_stages` stages.

        Raises:
            ValueError: the sequence has fewer stages.
        """
        if not 0 <= num_stages <= self.num_stages:
            raise ValueError(f"the prior has {self.num_stages} stages, so there is no prefix of {num_stages}")
        kept = {name: tensor[:num_stages] for name, tensor in self.weights.items()} if num_stages else None
        return RatioSequence(self.base, self.network, kept)

    def suffix(self, first: int) -> "RatioSequence":
        """The base with the ratios after the first `first` ones."""
        kept = {name: tensor[first:] for name, tensor in self.weights.items()} if first < self.num_stages else None
        return RatioSequence(self.base, self.network, kept)

    def stage_weights(self, stage: int) -> dict[str, Tensor]:
        """The state dict of the ratio frozen by stage 1 <= `stage` <= K."""
        return {name: tensor[stage - 1] for name, tensor in self.weights.items()}

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
        return RatioSequence(base, self.network, self.weights)

    def to(self, device: torch.device | str) -> "RatioSequence":
        """The same sequence on another device."""
        weights = {name: tensor.to(device) for name, tensor in self.weights.items()}
        return RatioSequence(self.base.to(device), self.network, weights)

    def log_ratios(self, z: Tensor) -> Tensor:
        """f_1(z), ..., f_K(z) for z (N, Z), as (K, N)."""
        if not self.weights:
            return z.new_zeros(0, len(z))
        z = self.coordinates(z)
        return torch.vmap(lambda weights: functional_call(self.network, weights, (z,)))(self.weights)

    def log_density(self, z: Tensor) -> Tensor:
        """log p_K(z) + log Z_K for z (N, Z), as (N,); differentiable in z."""
        value = self.base.log_density(z)
        return value + self.log_ratios(z).sum(dim=0) if self.weights else value

    def energy(self, z: Tensor) -> Tensor:
        """-log p_K(z) up to a constant, as (N,): higher is less likely."""
        return -self.log_density(z)

    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (N,) up to log Z_K, and score (N, Z): the sequence as a Langevin target."""
        return differentiate(self.log_density)(z)

    def score(self, z: Tensor) -> Tensor:
        """Gradient of log p_K at z (N, Z), as (N, Z)."""
        return self.evaluate(z)[1]
