"""Where a training run has its negatives from, samples of p_{k-1}: what `StageTrainer` asks of a source.

Shapes: B rows of this rank, R updates, M held-out posterior latents, Z coordinates (see `RatioSequence.coordinates`).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ebmscale.density.langevin import ChainTrace
from ebmscale.density.prior import RatioSequence
from ebmscale.model.saved_part import SavedPart
from ebmscale.stages.particles import Strength
from ebmscale.stages.stream_table import StreamTable
from ebmscale.stages.supplies import Negatives


@dataclass(frozen=True)
class Freeze:
    """A ratio made part of the prior; nothing has changed before `keep` is called.

    Attributes:
        prior: p_k.
        strength: of the ratio.
        keep: brings the source's samples to p_k.
        bound: J, the bound on KL(q || p_{k-1}) at that strength, and its standard error, in nats; None where the source
            has no other than that of the evidence.
    """

    prior: RatioSequence
    strength: Strength
    keep: Callable[[], None]
    bound: tuple[float, float] | None = None


class NegativeSource(Protocol):
    """Samples of p_{k-1} for training, in the coordinates of the ratios.

    Attributes:
        tables: what it keeps by stream; saved among the latents.
        parts: what else a checkpoint keeps of it.
        trace: of the chains that moved last.
        judges_gain: whether a ratio is judged at the gain at which it would be frozen.
        passes: evaluations of one network that a negative costs now.
    """

    tables: dict[str, StreamTable]
    parts: dict[str, SavedPart]
    trace: ChainTrace | None
    judges_gain: bool

    @property
    def passes(self) -> float: ...  # noqa: D102

    def begin(self, prior: RatioSequence, position: int) -> None:
        """Starts anew on a prior without ratios."""
        ...

    def advance(self, prior: RatioSequence, position: int) -> None:
        """Moves the chains, if the source has chains. It is called once for every batch."""
        ...

    def draw(self, prior: RatioSequence, noise: Any, streams: Tensor, num_updates: int) -> Negatives:
        """Negatives (B, R, Z) and their weights (B, R) for the next R updates."""
        ...

    def held_out(self, prior: RatioSequence, position: int) -> Negatives:
        """This rank's negatives that no update has seen."""
        ...

    def spread(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation (Z,) of p_{k-1}; None where networks do not standardise their inputs."""
        ...

    def freeze(self, prior: RatioSequence, weights: Mapping[str, Tensor], q: Tensor, position: int) -> Freeze:
        """The prior with the ratio of these weights (collective).

        Args:
            prior: p_{k-1}.
            weights: of the ratio, whole.
            q: (M, Z) held-out posterior latents of all ranks.
            position: `samples_seen`.
        """
        ...

    def used(self) -> Negatives | None:
        """This rank's negatives as the last updates saw them; None where that is not known."""
        ...

    def shown(self, prior: RatioSequence, num: int) -> Tensor:
        """At most `num` of this rank's samples (N, Z) of the prior, as points, to look at; nothing changes."""
        ...

    def undone_if_stopped(self) -> AbstractContextManager[None]:
        """What a measurement inside changed is taken back where a chain is stopped."""
        ...

    def take_restarted(self) -> int:
        """How many of this rank's chains diverged and began anew since the last call."""
        ...

    def rehearse(self, prior: RatioSequence) -> None:
        """Takes a prior that costs what the last one will, with made-up samples of it."""
        ...

    def values(self) -> dict[str, Any]:
        """The plain values of a checkpoint."""
        ...

    def load_values(self, values: Mapping[str, Any]) -> None:
        """Takes what `values` gave, before the parts are restored."""
        ...

    def resume(self, prior: RatioSequence) -> None:
        """Goes on from the parts that were restored, under the prior of that time."""
        ...
