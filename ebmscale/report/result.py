"""The result of one run of a comparison, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Result:
    """The result of one run.

    Attributes:
        row: its name in the table.
        seed: of the run.
        url: address of the run.
        measured: values by name; empty if the run failed.
        failure: why the run failed; None if it did not.
        commit: of the sources that trained and measured it, if known.
        machine: on which that was done (see `machine.describe`).
        by_stage: `cpu_s`, distance and nats under p_0, p_1, ... before the last one, if they were measured.
    """

    row: str
    seed: int
    url: str
    measured: dict[str, float]
    failure: str | None
    commit: str | None = None
    machine: Mapping[str, str | int] = field(default_factory=dict)
    by_stage: tuple[Mapping[str, float], ...] = ()
