"""Where the samples of the current prior p_k come from: particles moved under its density, or reweighted samples of p.

Shapes: N samples, P particles, Z coordinates.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ebmscale.density.estimates import importance_estimate
from ebmscale.density.langevin import ChainState, start
from ebmscale.density.moves import GeneratorNoise, adapted, jittered, move
from ebmscale.density.path import Annealed, Annealing, Leg, Normaliser, stage_legs
from ebmscale.density.prior import Base, RatioSequence
from ebmscale.density.resampling import resample_systematically
from ebmscale.density.smc import anneal, normaliser
from ebmscale.errors import DivergenceError
from ebmscale.ratios.quadratics import merged
from ebmscale.ratios.settings import FitSettings


class Negatives(Protocol):
    """Samples of the current prior, in a part for training and a part held out."""

    def draw(self, num: int) -> Tensor:
        """Samples (num, Z) for training."""
        ...

    def held_out(self) -> Tensor:
        """Samples (P, Z) that training never sees."""
        ...

    def refresh(self) -> None:
        """Makes the held-out samples new, as far as that is possible."""
        ...

    def tilt(self, ratio: nn.Module, mean_q: float) -> float:
        """Goes on to p_{k-1} e^(gain * ratio) for the gain that makes the ratio's mean there `mean_q`; the gain.

        That gain maximises the lower bound gain * E_q[f] - log E_p[e^(gain f)] on KL(q || p_{k-1}).
        """
        ...

    def accept(self, sequence: RatioSequence) -> None:
        """The sequence whose last ratio is the one of the last `tilt`, its gain included."""
        ...

    def normaliser(self, sequence: RatioSequence) -> Normaliser:
        """log Z_K of the sequence, by samples apart from all that it was trained on."""
        ...


class MovedParticles:
    """Particles of p_k by sequential Monte Carlo from a base density that is known."""

    def __init__(self, base: Base, sequence: RatioSequence, settings: FitSettings, generator: torch.Generator):
        self._settings, self._generator, self._sequence = settings, generator, sequence
        self._base = base
        size = settings.num_particles
        self._pools = [self._fresh(size), self._fresh(max(size // 2, 1))]
        self._drawn = 0
        self._step = torch.full((1,), settings.moves.step_size, dtype=torch.float64)

    def draw(self, num: int) -> Tensor:
        """See `Negatives.draw`; exact and new for the base itself."""
        if not self._sequence.num_stages:
            return self._fresh(num)
        self._drawn += num
        if self._drawn > self._settings.reuse * len(self._pools[0]):
            self._pools[0], self._drawn = self._moved(self._pools[0]), 0
        pool = self._pools[0]
        return pool[torch.randint(len(pool), (num,), generator=self._generator)]

    def held_out(self) -> Tensor:
        """See `Negatives.held_out`."""
        return self._pools[1]

    def refresh(self) -> None:
        """Moves the held-out particles; those of the base are drawn anew."""
        pool = self._pools[1]
        self._pools[1] = self._moved(pool) if self._sequence.num_stages else self._fresh(len(pool))

    def tilt(self, ratio: nn.Module, mean_q: float) -> float:
        """See `Negatives.tilt`."""
        leg = Leg(self._sequence.log_density, ratio)
        annealing, (training, held_out) = self._settings.annealing, self._pools
        first = self._walked([leg], training[None], annealing, until=mean_q, limit=self._settings.gain_limit)
        if float(first.end) > 0:
            second = self._walked([leg], held_out[None], annealing, plans=first.plans)
            self._step = first.step_size
            self._pools = [self._even(one.z[0], one.log_weights) for one in (first, second)]
        return float(first.end)

    def accept(self, sequence: RatioSequence) -> None:
        """See `Negatives.accept`."""
        self._sequence = merged(sequence)

    def normaliser(self, sequence: RatioSequence) -> Normaliser:
        """See `Negatives.normaliser`."""
        groups, size = self._settings.groups, self._settings.group_size
        z = self._fresh(groups * size).view(groups, size, -1)
        return normaliser(self._walked(stage_legs(sequence, merged), z, self._settings.final_annealing))

    def _fresh(self, num: int) -> Tensor:
        return self._base.from_noise(torch.randn(num, self._base.dim, generator=self._generator))

    def _walked(self, legs: list[Leg], z: Tensor, annealing: Annealing, **how: Any) -> Annealed:
        """`anneal`, with noise from the generator.

        Raises:
            DivergenceError: the particles cannot follow.
        """
        noise = GeneratorNoise(self._generator, z.shape[0] * z.shape[1])
        try:
            return anneal(legs, z, lambda leg, rung: noise, annealing, **how)
        except ValueError as error:
            raise DivergenceError(
                f"The particles cannot follow the ratio ({error}); use a lower rate, or give more samples."
            ) from None

    def _even(self, z: Tensor, log_weights: Tensor) -> Tensor:
        placed = torch.rand(1, generator=self._generator)
        return z[resample_systematically(log_weights, placed, len(z))[0]]

    def _moved(self, z: Tensor) -> Tensor:
        settings, target = self._settings.moves, self._sequence.evaluate
        noise, scale = GeneratorNoise(self._generator, len(z)), z.std(0, keepdim=True).clamp(min=1e-12)
        state: ChainState = start(target, z)
        steps = jittered(self._step.expand(len(z)), noise.uniform(), settings)
        state, accepted = move(state, noise.normal(z.shape[1]), noise.uniform(), target, steps, scale, settings)
        self._step = adapted(self._step, accepted.mean()[None].double(), settings)
        return state.z


class WeightedSamples:
    """Samples of p drawn in proportion to e^(f_1 + ... + f_k), which is all that can be done without p's density."""

    def __init__(self, samples: tuple[Tensor, Tensor, Tensor], settings: FitSettings, generator: torch.Generator):
        self._samples, self._settings, self._generator = samples, settings, generator
        self._log_weights = [torch.zeros(len(part), dtype=torch.float64) for part in samples]
        self._pending: list[Tensor] = []

    @property
    def effective(self) -> float:
        """The fraction of p's held-out samples that still counts."""
        return float(_ess(self._log_weights[1]))

    def draw(self, num: int) -> Tensor:
        """See `Negatives.draw`."""
        return self._drawn(0, num)

    def held_out(self) -> Tensor:
        """See `Negatives.held_out`."""
        return self._drawn(1, len(self._samples[1]))

    def refresh(self) -> None:
        """There are no others."""

    def tilt(self, ratio: nn.Module, mean_q: float) -> float:
        """See `Negatives.tilt`; it goes no further than `min_ess` of the samples, training and held out, can follow."""
        with torch.no_grad():
            self._pending = [ratio(part).double() for part in self._samples]
        low, high = 0.0, self._settings.gain_limit
        for _ in range(50):
            middle = 0.5 * (low + high)
            raised = [w + middle * f for w, f in zip(self._log_weights, self._pending, strict=True)][:2]
            mean_p = float(torch.softmax(raised[1], 0) @ self._pending[1])
            follows = min(float(_ess(one)) for one in raised) >= self._settings.min_ess and mean_p <= mean_q
            low, high = (middle, high) if follows else (low, middle)
        self._pending = [low * one for one in self._pending]
        return low if low > 1e-6 else 0.0

    def accept(self, sequence: RatioSequence) -> None:
        """See `Negatives.accept`."""
        self._log_weights = [w + f for w, f in zip(self._log_weights, self._pending, strict=True)]

    def normaliser(self, sequence: RatioSequence) -> Normaliser:
        """See `Negatives.normaliser`: the mean of the ratio over samples of p that were kept for the results."""
        log_z, error = importance_estimate(self._log_weights[2])
        return Normaliser(float(log_z), float(error), math.nan)

    def _drawn(self, part: int, num: int) -> Tensor:
        weights = torch.softmax(self._log_weights[part], 0)
        chosen = torch.multinomial(weights, num, replacement=True, generator=self._generator)
        return self._samples[part][chosen]


def _ess(log_weights: Tensor) -> Tensor:
    """Effective sample size as a fraction."""
    return torch.exp(2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)) / len(log_weights)
