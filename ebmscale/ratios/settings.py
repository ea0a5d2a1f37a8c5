"""How a density ratio is fitted between two sets of samples."""

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal

from ebmscale.density.moves import MoveSettings
from ebmscale.density.path import Annealing
from ebmscale.errors import ConfigError
from ebmscale.stages.settings import ParticleSettings, StageSettings, TrainerSettings

FINAL_MOVES = 3
"""How many times as many moves a rung of the final normaliser takes."""

_WHOLE = {
    "waves": 0, "max_stages": 1, "batch_size": 1, "min_updates": 0, "max_updates": 1, "evidence_every": 1,
    "num_particles": 1, "groups": 1, "group_size": 1,
}  # fmt: skip  # the least value of settings that are whole numbers
_MOST = 2**30  # of these, and of widths: torch counts the bytes of a layer with 64 bits
_NUMBERS = {
    "rate": (1e-30, 1e30), "weight_decay": (0, 1e30), "significance": (-1e30, 1e30), "min_gain": (0, 1e30),
    "held_out": (0.01, 0.9), "gain_limit": (1e-30, 1e30), "min_ess": (0, 1), "ess": (0.01, 0.99),
}  # fmt: skip  # the least and the greatest value of others


@dataclass(frozen=True)
class FitSettings:
    """Settings of `fit_ratio`. Lengths of time are in updates of the ratio network.

    Example:
        >>> fit_ratio(p, q, settings=FitSettings(hidden=(64, 64), max_stages=3))

    Attributes:
        hidden: widths of the hidden layers; () for a ratio with the quadratic head alone, or a linear one.
        waves: sines of random projections that the hidden layers see beside the coordinates, for densities with sharp
            features in few dimensions (see `networks.ratio_heads.Waves`).
        quadratic: whether there is a quadratic head.
        start: of every stage's quadratic head. "moments": the log ratio of the two Gaussians with the moments of the
            two sides (see `stages.moments.gaussian_ratio`), multiplied by the factor that is best on held-out
            samples. "zero": the zero function.
        activation: function of the hidden layers (see `networks.ACTIVATIONS`).
        conv: channels of the convolutions, for images (N, C, H, W).
        max_stages: K at most.
        batch_size: number of samples of p, and of q, in an update.
        rate: learning rate of Adam. It falls along a cosine to zero at the end of a stage.
        weight_decay: decoupled weight decay of Adam, of all weights but those of a quadratic head. A decay of 0.3 keeps
            a ratio of many dimensions and few samples from memorising; it also blurs the edges of a density.
        min_updates: smallest number of updates of a stage.
        max_updates: largest number of updates of a stage. Between these bounds a stage ends when a new stage would add
            more.
        evidence_every: updates between two measurements on held-out samples.
        significance: another stage begins only if the bound of the last one on the KL divergence exceeds this many
            standard errors. A stage is kept if its bound is above 0, or with a negative number so many errors below.
        min_gain: a stage that adds less than this many nats, or less than 0.2 % of all, is kept, and is the last.
        held_out: fraction of the samples of p, and of q, that is held out. Half of it chooses weights and gains. The
            other half is for the results alone.
        num_particles: number of particles of every prior p_k, where the base density is known.
        gain_limit: largest factor (gain) of a stage's ratio.
        min_ess: where p is known by samples alone, the smallest fraction of effective samples. The gain of a stage is
            not increased below it.
        ess: effective sample size, as a fraction, between two intermediate densities (see `Annealing`).
        moves: the kernel that moves particles. None takes Hamiltonian Monte Carlo (see `MoveSettings`).
        groups: number of independent runs of sequential Monte Carlo that measure the final normaliser.
        group_size: number of particles in each of these runs.
        budget_s: seconds that the fit may take. The result is the stages that are done by then. The first stage is
            never interrupted, so a fit may take somewhat longer.
    """

    hidden: tuple[int, ...] = (128, 128)
    waves: int = 0
    quadratic: bool = True
    start: Literal["moments", "zero"] = "moments"
    activation: Literal["silu", "leaky_relu", "gelu"] = "silu"
    conv: tuple[int, ...] = (32, 64)
    max_stages: int = 8
    batch_size: int = 512
    rate: float = 2e-3
    weight_decay: float = 0.0
    min_updates: int = 400
    max_updates: int = 3000
    evidence_every: int = 50
    significance: float = 2.0
    min_gain: float = 0.003
    held_out: float = 0.2
    num_particles: int = 8192
    gain_limit: float = 30.0
    min_ess: float = 0.02
    ess: float = 0.5
    moves: MoveSettings | None = None
    groups: int = 8
    group_size: int = 1024
    budget_s: float = math.inf

    def __post_init__(self) -> None:
        for name, least in _WHOLE.items():
            _check_whole(getattr(self, name), name, least)
        for name in ("hidden", "conv"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ConfigError(f"{name} must hold widths, such as (64, 64), not {getattr(self, name)!r}.")
            for width in getattr(self, name):
                _check_whole(width, f"a width in {name}", 1)
        for name, (low, high) in _NUMBERS.items():
            number = getattr(self, name)
            if not (isinstance(number, Real) and low <= float(number) <= high):
                raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, not {number!r}.")
        if self.min_updates > self.max_updates:
            raise ConfigError("min_updates must not be above max_updates.")
        if self.start not in ("moments", "zero"):
            raise ConfigError(f"start must be moments or zero, not {self.start!r}.")
        if self.waves and not self.hidden:
            raise ConfigError("waves need hidden layers that see them.")
        if not (isinstance(self.budget_s, Real) and self.budget_s > 0):
            raise ConfigError(f"budget_s must be positive, not {self.budget_s!r}.")
        if not isinstance(self.moves, MoveSettings | None):
            raise ConfigError(f"moves must be MoveSettings or None, not {self.moves!r}.")

    @classmethod
    def of(cls, given: "FitSettings | None") -> "FitSettings":
        """The settings that a caller gave, or the defaults.

        Raises:
            ConfigError: they are something else.
        """
        if not isinstance(given, FitSettings | None):
            raise ConfigError(f"settings must be FitSettings(...), not a {type(given).__name__}.")
        return given or cls()

    @property
    def stages(self) -> StageSettings:
        """How stages are learned."""
        batches = max(self.num_particles // self.batch_size, 1)
        return StageSettings(
            max_stages=self.max_stages,
            significance=self.significance,
            min_gain=self.min_gain,
            gain_limit=self.gain_limit,
            trainer=TrainerSettings(
                batch_size=self.batch_size,
                rate=self.rate,
                weight_decay=self.weight_decay,
                evidence_every=self.evidence_every,
                min_updates=self.min_updates,
                max_updates=self.max_updates,
                start=self.start,
            ),
            particles=ParticleSettings(
                pool_size=batches * self.batch_size,
                num_tune=max(self.num_particles // 2, 1),
                group_size=max(self.num_particles // 4, 1),
                num_fresh=8 * self.num_particles,
                annealing=self.annealing,
            ),
        )

    @property
    def kernel(self) -> MoveSettings:
        """`moves`, or what is chosen for them."""
        return self.moves or MoveSettings()

    @property
    def annealing(self) -> Annealing:
        """How particles are brought from one prior to the next: resampled before they move, so that none stay equal."""
        return Annealing(ess=self.ess, resample_below=1.0, moves=self.kernel)

    @property
    def final_annealing(self) -> Annealing:
        """How the final normaliser is measured: particles that lag behind their rung would make it too small."""
        return Annealing(ess=self.ess, moves=replace(self.kernel, num_moves=FINAL_MOVES * self.kernel.num_moves))


def _check_whole(value: Any, name: str, least: int) -> None:
    """Refuses what is not a whole number from `least` on, or is beyond what arrays can have."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ConfigError(f"{name} must be a whole number from {least} on, not {value!r}.")
    if int(value) >= _MOST:
        raise ConfigError(f"{name} must be below {_MOST:,}, not {value!r}.")
