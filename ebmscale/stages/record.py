"""What a stage ended with, as a value that goes into records and decides what is done next."""

from dataclasses import dataclass
from typing import Protocol

from ebmscale.density.evidence import Evidence


class Paid(Protocol):
    """What a stage gave for its work: all that the scheduler asks of its record. See `StageRecord`."""

    @property
    def stage(self) -> int: ...  # noqa: D102

    @property
    def gain(self) -> float: ...  # noqa: D102

    @property
    def nats(self) -> float: ...  # noqa: D102

    @property
    def nats_error(self) -> float: ...  # noqa: D102

    @property
    def work(self) -> float: ...  # noqa: D102


@dataclass(frozen=True)
class Memorised:
    """A ratio's loss on what it was trained on and on what it was not, in nats; alike where nothing is memorised.

    Attributes:
        used: mean of softplus(f) over negatives as updates saw them.
        fresh: the same over negatives that no update saw.
        train: mean of softplus(-f) over samples of q that it was trained on.
        held_out: the same over others.
    """

    used: float
    fresh: float
    train: float
    held_out: float

    @property
    def of_negatives(self) -> float:
        """How much the negatives were memorised."""
        return self.fresh - self.used

    @property
    def of_target(self) -> float:
        """How much the samples of q were memorised."""
        return self.held_out - self.train


@dataclass(frozen=True)
class StageRecord:
    """A stage that is done.

    Attributes:
        stage: k, from 1.
        updates: of its network.
        best_at: the update whose weights were kept.
        supply: where its negatives came from.
        supply_reason: why from there.
        share: effective share of the base's draws under the weights of p_{k-1}.
        evidence: on the judge's samples and fresh negatives, at gain 1.
        memorised: see there.
        gain: what the ratio was multiplied by; 0 where it was not kept.
        nats: J, the bound on KL(q || p_{k-1}) at that gain and power.
        nats_error: its standard error.
        log_z: of all stages up to this one, and
        log_z_error: its standard error.
        work: what its updates took, in evaluations of a network at one point.
        seconds: all in all, of the course's clock.
        reason: why it ended.
        power: to which p_{k-1} was raised.
    """

    stage: int
    updates: int
    best_at: int
    supply: str
    supply_reason: str
    share: float
    evidence: Evidence
    memorised: Memorised
    gain: float
    nats: float
    nats_error: float
    log_z: float
    log_z_error: float
    work: float
    seconds: float
    reason: str
    power: float = 1.0
