"""Samples of p_k from a base density that is known: exact draws, weighted draws, or particles that are moved.

Shapes: M draws, G groups, N particles of a group, Z coordinates.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ebmscale.density.estimates import importance_estimate, pooled
from ebmscale.density.evidence import effective_sample_size
from ebmscale.density.path import WalkPlan
from ebmscale.density.prior import RatioSequence
from ebmscale.kernels.closed_form import stage_legs
from ebmscale.kernels.quadratics import merged
from ebmscale.model.sampler import total
from ebmscale.stages.draws import Draws
from ebmscale.stages.particles import Strength, Tilted, Walkers, tilt
from ebmscale.stages.pools import Pool
from ebmscale.stages.settings import ParticleSettings
from ebmscale.stages.source import Chosen, Grown
from ebmscale.stages.supplies import ExactDraws, Negatives, Supply, WeightedDraws

CHECKED = 8192
"""Fresh negatives that choose a stage's weights, and again as many that judge it."""
NUMBERS = ("share", "log_z", "log_z_error", "step_size")


class FromBase:
    """A `source.PriorSource`: weighted draws of the base while enough of them count, else particles that follow by SMC.

    Args:
        sequence: the base with the ratios that there are.
        settings: how.
        draws: noise.
        gain_limit: of any ratio.
    """

    reaches = True

    def __init__(self, sequence: RatioSequence, settings: ParticleSettings, draws: Draws, gain_limit: float):
        self._sequence, self._settings, self._draws, self._gain_limit = sequence, settings, draws, gain_limit
        self.share, self.log_z, self.log_z_error = 1.0, 0.0, 0.0
        self.step_size = settings.annealing.moves.step_size
        self.tune = Walkers.of_base("tune", sequence.base, 1, settings.num_tune, draws.whole)
        self.judge: Walkers | None = None
        self.pool: Walkers | None = None
        self._tilted: Tilted | None = None

    @property
    def _stage(self) -> int:
        return self._sequence.num_stages + 1

    def supply(self) -> Chosen:
        """See `source.PriorSource.supply`."""
        settings, draws, name = self._settings, self._draws, f"stage-{self._stage}"
        if self._stage == 1:
            return Chosen(ExactDraws(self._sequence.base, draws, name), "the prior is the base itself")
        share = f"{100 * self.share:.2g} % of the base's draws count under the ratios' weights"
        if self.judge is None or self.pool is None:
            weighted = WeightedDraws(merged(self._sequence), self.log_z, settings.candidates, draws, name)
            return Chosen(weighted, f"{share}: enough")
        own, fresh = (walkers.rows[draws.rows(len(walkers.rows))] for walkers in (self.pool, self.judge))
        lengths = self.step_size * self.judge.rows.std(0).clamp(min=1e-12)
        pool = Pool(self._sequence, own, lengths, fresh, settings.most_uses, draws, name)
        return Chosen(pool, f"{share}: too few")

    def tuning(self, supply: Supply) -> Negatives:
        """See `source.PriorSource.tuning`."""
        if isinstance(supply, Pool):
            return Negatives(self.tune.rows, torch.ones(len(self.tune.rows), device=self.tune.z.device))
        return supply.fresh(CHECKED, 0)

    def judging(self, supply: Supply) -> Negatives:
        """See `source.PriorSource.judging`."""
        return supply.fresh(CHECKED, 1)

    def tilt(self, ratio: nn.Module, q: Tensor) -> Strength:
        """See `source.PriorSource.tilt`; found along annealed particles.

        Raises:
            DivergenceError: the particles cannot follow.
        """
        how = self._settings.annealing
        draws, step = self._draws.whole, self.step_size
        self._tilted = tilt(self.tune, self._sequence, ratio, q, self._gain_limit, how, step, draws)
        return self._tilted.strength

    def accept(self, sequence: RatioSequence) -> Grown:
        """See `source.PriorSource.accept`.

        Raises:
            DivergenceError: the particles cannot follow.
        """
        assert self._tilted is not None
        before, self._sequence = self._sequence, sequence
        self.tune, plan = self._tilted.walkers, self._tilted.plan
        self.step_size = float(plan.step_size[0, -1])
        self._tilted = None
        grown = self._weighed(before) if self.judge is None else None
        if grown is None:
            self._follow(plan)
            assert self.judge is not None
            grown = Grown(*self.judge.normaliser(), *pooled(self.judge.log_z[:, -1]))
        self.log_z, self.log_z_error = grown.log_z, grown.log_z_error
        return grown

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it, beside the sequence."""
        found: dict[str, Tensor] = {}
        for walkers in (self.tune, self.judge, self.pool):
            if walkers is not None:
                found |= {f"{walkers.name}/z": walkers.z, f"{walkers.name}/log_z": walkers.log_z}
        return {name: one.clone() for name, one in found.items()}

    def load(self, sequence: RatioSequence, tensors: Mapping[str, Tensor], values: Mapping[str, float]) -> None:
        """Takes what `tensors` and `values` gave, with the sequence of that time."""
        self._sequence = sequence
        for name in ("tune", "judge", "pool"):
            if f"{name}/z" in tensors:
                setattr(self, name, Walkers(name, tensors[f"{name}/z"], tensors[f"{name}/log_z"]))
        for name in NUMBERS:
            setattr(self, name, values[name])

    def values(self) -> dict[str, float]:
        """The numbers of a checkpoint."""
        return {name: getattr(self, name) for name in NUMBERS}

    def _weighed(self, before: RatioSequence) -> Grown | None:
        """What fresh draws of the base say by their weights; None where too few of them count."""
        settings, base = self._settings, self._sequence.base
        z = base.from_noise(self._draws.whole.noise(settings.num_fresh, "judge", self._stage).normal(base.dim))
        old, new = (total(merged(one), z).double() for one in (before, self._sequence))
        self.share = effective_sample_size(new) / len(new)
        if self.share < settings.min_share:
            return None
        (log_z, error), (old_z, _) = importance_estimate(new), importance_estimate(old)
        spread = (new - log_z).exp() - (old - old_z).exp()
        return Grown(float(log_z), float(error), float(log_z - old_z), float(spread.std()) / math.sqrt(len(z)))

    def _follow(self, plan: WalkPlan) -> None:
        """Brings the particles that judge and train along the last leg by its plan.

        Where there were none, new ones go along all legs and find their own way.
        """
        settings, base, annealing, draws = self._settings, self._sequence.base, self._settings.annealing, self._draws
        legs = stage_legs(self._sequence)
        for name, groups, size in (("judge", settings.groups, settings.group_size), ("pool", 1, settings.pool_size)):
            walkers: Walkers | None = getattr(self, name)
            if walkers is None:
                new = Walkers.of_base(name, base, groups, size, draws.whole)
                moved = new.walked(legs, annealing, draws.whole, len(legs))
            else:
                moved = walkers.followed(legs[-1:], [plan], annealing, draws.whole, len(legs))
            setattr(self, name, moved)
