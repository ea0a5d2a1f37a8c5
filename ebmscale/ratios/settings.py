"""How a density ratio is fitted between two sets of samples."""

from dataclasses import dataclass, field, replace
from typing import Literal

from ebmscale.density.moves import MoveSettings
from ebmscale.density.path import Annealing
from ebmscale.density.schedule import Criteria
from ebmscale.errors import ConfigError

FINAL_MOVES = 3
"""How many times as many moves a rung of the final normaliser takes."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of `fit_ratio`. Lengths of time are in updates of the ratio network.

    Attributes:
        hidden: widths of the hidden layers; () leaves the quadratic head alone, or a linear ratio.
        waves: sines of random projections that the hidden layers see beside the coordinates, for densities with sharp
            features in few dimensions (see `networks.ratio_heads.Waves`).
        quadratic: whether there is a quadratic head.
        start: of every stage's quadratic head: at the log ratio of the two Gaussians that have the moments of either
            side (see `moments.gaussian_ratio`), as strong as held-out samples bear; or at zero.
        activation: of the hidden layers (see `networks.ACTIVATIONS`).
        conv: channels of the convolutions, for images (N, C, H, W).
        max_stages: K at most.
        batch_size: samples of each side in an update.
        rate: of Adam, before it falls along a cosine to zero at the end of a stage.
        weight_decay: of Adam.
        min_updates: exploring at the full rate lasts at least this long,
        patience: and until that many measurements have not improved by `min_improvement` nats.
        max_updates: a stage at most.
        settle_updates: how long the rate takes to fall.
        evidence_every: from measurement to measurement.
        min_improvement: of the held-out loss, in nats.
        significance: a stage counts if its bound on the KL divergence exceeds so many standard errors.
        min_gain: a stage that adds less than this many nats is kept, and is the last.
        held_out: share of either side's samples that is held out; half of it stops the stages early and sets their
            gains, the other half is for the results alone.
        num_particles: of every prior p_k, where the base density is known.
        reuse: how often a particle is used, on average, before it is moved.
        gain_limit: a stage's ratio is multiplied by at most this.
        min_ess: with samples of p alone: effective samples, as a fraction, below which a stage is not strengthened.
        ess: between two rungs (see `Annealing`).
        moves: the kernel that moves particles.
        groups: independent runs of sequential Monte Carlo for the final normaliser, and
        group_size: particles of each.
    """

    hidden: tuple[int, ...] = (128, 128)
    waves: int = 0
    quadratic: bool = False
    start: Literal["moments", "zero"] = "moments"
    activation: Literal["silu", "leaky_relu", "gelu"] = "silu"
    conv: tuple[int, ...] = (32, 64)
    max_stages: int = 8
    batch_size: int = 512
    rate: float = 2e-3
    weight_decay: float = 0.0
    min_updates: int = 300
    patience: int = 3
    max_updates: int = 3000
    settle_updates: int = 1500
    evidence_every: int = 100
    min_improvement: float = 1e-3
    significance: float = 2.0
    min_gain: float = 0.003
    held_out: float = 0.2
    num_particles: int = 8192
    reuse: float = 4.0
    gain_limit: float = 30.0
    min_ess: float = 0.02
    ess: float = 0.5
    moves: MoveSettings = field(default_factory=MoveSettings)
    groups: int = 8
    group_size: int = 1024

    def __post_init__(self) -> None:
        if min(self.max_stages, self.batch_size, self.max_updates, self.evidence_every, self.num_particles) < 1:
            raise ConfigError("max_stages, batch_size, max_updates, evidence_every and num_particles must be positive.")
        if self.settle_updates >= self.max_updates:
            raise ConfigError("settle_updates must be below max_updates, or no time is left to explore.")
        if self.start not in ("moments", "zero"):
            raise ConfigError(f"start must be moments or zero, not {self.start!r}.")
        if self.waves < 0 or (self.waves and not self.hidden):
            raise ConfigError("waves must not be negative, and need hidden layers that see them.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be between 0 and 1, not {self.held_out:g}.")

    @property
    def criteria(self) -> Criteria:
        """When a stage moves on, counted in samples as the scheduler does."""
        return Criteria(
            max_stages=self.max_stages,
            min_samples=self.min_updates * self.batch_size,
            max_samples=self.max_updates * self.batch_size,
            settle_samples=self.settle_updates * self.batch_size,
            patience=self.patience,
            min_improvement=self.min_improvement,
            significance=self.significance,
            target_moves=False,
            auc_drop=1.0,
        )

    @property
    def annealing(self) -> Annealing:
        """How particles are brought from one prior to the next."""
        return Annealing(ess=self.ess, moves=self.moves)

    @property
    def final_annealing(self) -> Annealing:
        """How the final normaliser is measured: particles that lag behind their rung would make it too small."""
        return replace(self.annealing, moves=replace(self.moves, num_moves=FINAL_MOVES * self.moves.num_moves))
