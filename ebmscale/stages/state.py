"""The state of a fit as tensors by name and plain numbers, for a checkpoint at any part of a stage."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ebmscale.density.evidence import Evidence
from ebmscale.density.prior import RatioSequence
from ebmscale.stages.from_base import FromBase
from ebmscale.stages.learn import Learned
from ebmscale.stages.record import Memorised, StageRecord
from ebmscale.stages.scheduler import Verdict
from ebmscale.stages.trainer import Trainer


@dataclass(frozen=True)
class State:
    """What a checkpoint holds, beside the base: ratios with their gains, log Z, the stage in training, and particles.

    Attributes:
        tensors: by name.
        values: what JSON can hold.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `name` and a slash, without it."""
        return {key.removeprefix(f"{name}/"): one for key, one in self.tensors.items() if key.startswith(f"{name}/")}


def state_of(learned: Learned, source: FromBase, trainer: Trainer) -> State:
    """The state in the middle of a stage."""
    parts = {"ratios": learned.sequence.tensors, "source": source.tensors(), "trainer": trainer.tensors()}
    return State(
        {f"{part}/{name}": one.clone() for part, found in parts.items() for name, one in found.items()},
        {
            "records": [asdict(record) for record in learned.records],
            "source": source.values(),
            "trainer": trainer.values(),
        },
    )


def restored(state: State, empty: RatioSequence, source: FromBase) -> tuple[Learned, Callable[[Trainer], None]]:
    """What `learn` goes on from, and its `resume`; the source is brought to where it was.

    Args:
        state: of a checkpoint.
        empty: the base with the form of the networks.
        source: as it was made at first.
    """
    sequence = RatioSequence(empty.base, empty.network, state.part("ratios"))
    source.load(sequence, state.part("source"), state.values["source"])
    records = tuple(_record(one) for one in state.values["records"])
    learned = Learned(sequence, records, Verdict(True, "it goes on from a checkpoint"))
    return learned, lambda trainer: trainer.load(state.part("trainer"), state.values["trainer"])


def _record(values: Mapping[str, Any]) -> StageRecord:
    parts = {"evidence": Evidence(**values["evidence"]), "memorised": Memorised(**values["memorised"])}
    return StageRecord(**{**values, **parts})
