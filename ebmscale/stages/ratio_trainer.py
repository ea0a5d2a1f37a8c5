"""What training needs of whatever trains the ratios: `StageTrainer`, or `LiveTrainer` for a prior that is live."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from ebmscale.density.evidence import Evidence
from ebmscale.density.langevin import ChainTrace
from ebmscale.density.prior import RatioSequence
from ebmscale.density.schedule import Decision, StageState
from ebmscale.model.sampler import Agreement
from ebmscale.model.saved_part import SavedPart
from ebmscale.stages.latents import Latents
from ebmscale.stages.ratio_engine import RatioEngine
from ebmscale.stages.ratio_settings import RatioSettings
from ebmscale.stages.ratio_updates import RatioReport
from ebmscale.stages.record import Memorised


class RatioTrainer(Protocol):
    """Trains ratios on posterior latents, and keeps the prior that they make.

    A batch is `observe`, `advance_prior` and `update`; a measurement is `evidence` and `decide`. A restore is
    `load_values`, `restore` of every part, and `take_frozen`.

    Attributes:
        engine: of the ratio network.
        settings: how ratios are trained and the prior is sampled.
        latents: the buffer of posteriors and the base.
        prior: p_k now.
        state: where the stage is.
        checks: of samples of the prior against held-out posteriors, by stage, where the last decision froze one.
        memorised: the losses on what updates use and on what they do not, in nats; None where that is not measured.
    """

    engine: RatioEngine
    settings: RatioSettings
    latents: Latents
    prior: RatioSequence
    state: StageState
    checks: dict[int, Agreement]
    memorised: Memorised | None

    @property
    def trace(self) -> ChainTrace | None:
        """Of the prior chains that moved last; None where there are none."""
        ...

    @property
    def parts(self) -> dict[str, SavedPart]:
        """What a checkpoint keeps as tensors, by name; the frozen ratios are written apart."""
        ...

    @property
    def frozen(self) -> RatioSequence:
        """The base with the ratios that are frozen."""
        ...

    def trains_at(self, position: int) -> bool:
        """Whether a ratio is in training at `samples_seen` (collective until there is something to train on)."""
        ...

    def observe(self, posterior: Tensor, streams: Tensor) -> None:
        """Takes the posteriors of a batch (see `Latents.observe`)."""
        ...

    def advance_prior(self, position: int) -> None:
        """Moves the prior chains that the updates of this batch draw from."""
        ...

    def fit_base(self, position: int) -> None:
        """Fits the base to the buffer (collective); `update` does so where it is due."""
        ...

    def update(self, position: int, rate_scale: float = 1.0, limit: float = math.inf) -> RatioReport | None:
        """`updates_per_batch` updates; None when there is nothing to train yet or any more (collective).

        Args:
            position: `samples_seen` at the start of the batch.
            rate_scale: factor of the learning rate.
            limit: an update whose loss on any rank is above it is left out, as one that is not finite.
        """
        ...

    def measured_at(self, position: int) -> int:
        """Whose noise a measurement at `samples_seen` takes.

        Where the target stands still it is the same for all of a stage, so that losses differ by the weights alone.
        The measurement that judges a stage has its own.
        """
        ...

    def evidence(self, z_held_out: Tensor, position: int) -> Evidence:
        """Held-out evidence, the same on every rank (collective).

        Args:
            z_held_out: (B, Z) this rank's held-out posterior latents.
            position: `samples_seen`.
        """
        ...

    def decide(self, evidence: Evidence, position: int) -> Decision:
        """The scheduler's decision on this evidence, carried out (collective)."""
        ...

    def shown(self, num: int) -> Tensor:
        """At most `num` of this rank's samples (N, Z) of the prior that its ratios are trained on, to look at."""
        ...

    def undone_if_stopped(self) -> AbstractContextManager[None]:
        """What a measurement of evidence inside changed is taken back where a chain is stopped."""
        ...

    def take_restarted(self) -> int:
        """How many of this rank's prior chains diverged and began anew since the last call."""
        ...

    def shift(self, num_samples: int) -> None:
        """Sets the clock of the stage on by so many samples, in which it did not train."""
        ...

    def values(self) -> dict[str, Any]:
        """The plain values that `load_values` takes."""
        ...

    def load_values(self, values: dict[str, Any]) -> None:
        """Takes what `values` gave."""
        ...

    def take_frozen(self, ratios: Sequence[Mapping[str, Tensor]]) -> None:
        """Makes the prior anew from the base and the weights of frozen ratios, in the order of their stages."""
        ...
