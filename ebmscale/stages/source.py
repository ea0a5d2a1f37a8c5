"""Where samples of p_k come from: what a sequence of stages asks of it."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ebmscale.density.prior import RatioSequence
from ebmscale.stages.particles import Strength
from ebmscale.stages.supplies import Negatives, Supply


@dataclass(frozen=True)
class Grown:
    """What a ratio with its gain made of the prior.

    Attributes:
        log_z: of all stages, and
        log_z_error: its standard error.
        by: how much log Z grew by this stage, from samples that chose neither weights nor gain, and
        by_error: its standard error.
    """

    log_z: float
    log_z_error: float
    by: float
    by_error: float


@dataclass(frozen=True)
class Chosen:
    """A supply of negatives, and why it was chosen."""

    supply: Supply
    reason: str


class PriorSource(Protocol):
    """Samples of the current prior p_{k-1}, which follow the sequence.

    Attributes:
        share: effective share of the first prior's samples under the weights of the current one.
        reaches: whether these samples can carry what is learned on them.
    """

    @property
    def share(self) -> float: ...  # noqa: D102

    @property
    def reaches(self) -> bool: ...  # noqa: D102

    def supply(self) -> Chosen:
        """Negatives to train the next stage on."""
        ...

    def tuning(self, supply: Supply) -> Negatives:
        """Negatives that choose the stage's weights, none of which is trained on."""
        ...

    def judging(self, supply: Supply) -> Negatives:
        """Negatives that judge the stage, none of which is trained on or chose its weights."""
        ...

    def tilt(self, ratio: nn.Module, q: Tensor) -> Strength:
        """How strong a ratio is to be, by samples (M, Z) of q.

        The strength maximises a bound on KL(q || p_{k-1}); see `particles.tilt`. The gain is 0 where none adds.
        """
        ...

    def accept(self, sequence: RatioSequence) -> Grown:
        """Goes on to the sequence whose last stage is the ratio of the last `tilt`, with the strength found there."""
        ...
