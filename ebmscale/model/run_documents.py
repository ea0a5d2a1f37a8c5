"""Pydantic models of the documents of a run: manifest, state and clock of a checkpoint, and the lines of the logs.

A file whose checksum is right may still have been written by another program, so every field is validated.
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator

from ebmscale.density.schedule import StageState
from ebmscale.kernels.forms import FormName
from ebmscale.model.residuals import Residuals
from ebmscale.model.timed_parts import PARTS
from ebmscale.stored import Count, FileName, Number, Sha256, Size, Stored


@dataclass(frozen=True)
class GuardState:
    """The state of the guard: plain numbers, saved in every checkpoint.

    Attributes:
        error: running mean of the squared error per pixel.
        num_good: number of updates in `error`.
        ratio_loss: running mean of the loss of the ratio, in nats, in this round of its stage.
        ratio_num_good: number of batches in `ratio_loss`.
        ratio_round: the round of `ratio_loss`: its stage, and `samples_seen` at its start.
        bad_in_row: number of skipped updates in a row.
        rollbacks: number of roll-backs of the run.
        rate_scale: factor of both learning rates.
    """

    error: float = 0.0
    num_good: int = 0
    ratio_loss: float = 0.0
    ratio_num_good: int = 0
    ratio_round: tuple[int, int] = (0, 0)
    bad_in_row: int = 0
    rollbacks: int = 0
    rate_scale: float = 1.0


EVIDENCE = {"loss", "auc", "kl_bound", "kl_bound_error", "ess"}  # keys that readers of events need
STATE = {"started", "settling_since"}
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Stem = Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]


class FileAbout(Stored):
    """A file of a checkpoint: its size and checksum. A part also has its stem and spans (name, start, length)."""

    num_bytes: Count
    sha256: Sha256
    stem: Stem | None = None
    spans: tuple[tuple[str, Count, Count], ...] = ()


class RatioAbout(Stored):
    """The file of a frozen ratio in the folder `ratios` of the run."""

    file: Annotated[str, Field(pattern=r"^ratios/[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$")]
    num_bytes: Count
    sha256: Sha256


class CheckpointManifest(Stored):
    """The manifest of a checkpoint.

    Attributes:
        samples_seen: position of the run.
        stage: the stage in training.
        good: whether the last update was not skipped.
        metrics: the metrics that decide which checkpoints are kept.
        files: its own files by name.
        ratios: the frozen ratios, in the order of their stages.
        tensors: the shape of every tensor, by stem and name.
        model: the block `model` of the configuration without `ratio`; None in checkpoints of earlier versions.
    """

    samples_seen: Count | None = None  # the name of the folder says it too, and counts
    stage: Count | None = None
    good: bool = True
    metrics: dict[str, Number] = Field(default_factory=dict)
    files: dict[FileName, FileAbout]
    ratios: list[RatioAbout]
    tensors: dict[Stem, dict[str, list[Count]]]
    model: dict[str, Any] | None = None


class NegativesState(Stored):
    """The plain values of `stages.density_negatives`."""

    updates: Count
    judge_log_z: list[list[Number]]
    share: Number
    log_z: Number
    log_z_error: Number
    step_size: Number


class BestState(Stored):
    """The plain values of `stages.best_weights`."""

    loss: Number
    position: Count


class PaidState(Stored):
    """A stage in the values of `stages.pay`."""

    stage: Count
    gain: Number
    nats: Number
    nats_error: Number
    work: Number


class PayState(Stored):
    """The plain values of `stages.pay`."""

    curve: list[tuple[Count, Number]]
    paid: list[PaidState]


class StagesState(Stored):
    """The plain values of a `RatioTrainer`. Checkpoints of earlier versions have no `base_tried`, `best` and `pay`."""

    stage: StageState
    grad_norm: Number
    fits_base: bool = False
    base_tried: list[tuple[Count, Number]] = Field(default_factory=list)
    best: BestState | None = None
    pay: PayState | None = None
    negatives: NegativesState | None = None

    @model_validator(mode="after")
    def _counts_are_counts(self) -> "StagesState":
        _check_counts(asdict(self.stage))
        return self


class DoneAt(Stored):
    """`samples_seen` at the last measurement of evidence, the last metrics and the last checkpoint."""

    evidence: Count
    metrics: Count
    checkpoint: Count


class RunState(Stored):
    """`state.json`: the plain values of a run, as `Run.save` writes them."""

    samples_seen: Count
    done_at: DoneAt
    image_shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=8)]
    stages: StagesState
    guard: GuardState
    measured: dict[str, Number]
    meters: list[dict[str, tuple[Number, Number]]]
    residuals: Residuals | None = None
    form: FormName | None = None
    mean_square: Number | None = None
    posterior_steps: Count | None = None

    @model_validator(mode="after")
    def _counts_are_counts(self) -> "RunState":
        _check_counts(asdict(self.guard))
        return self


class ClockState(Stored):
    """`clock.json`: seconds of the interval of metrics in which a checkpoint was taken, from `PartTimer.values`."""

    parts: dict[str, Seconds]
    total: Seconds
    cpu: Seconds

    @model_validator(mode="after")
    def _parts_are_known(self) -> "ClockState":
        if set(self.parts) - set(PARTS):
            raise ValueError(f"parts are {', '.join(PARTS)}")
        return self


def _check_counts(values: dict[str, Any]) -> None:
    """Checks that integers of a state are between 0 and 2^63 - 1."""
    for name, value in values.items():
        if any(type(one) is int and not 0 <= one < 2**63 for one in (value if isinstance(value, tuple) else [value])):
            raise ValueError(f"{name} is not a count")


class ExportAbout(Stored):
    """`model.json` of an export. Exports of earlier versions have no checksums (`files`) and no `num_stages`."""

    format_version: int
    samples_seen: Count
    image_shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=8)]
    config: dict[str, Any]
    num_stages: Count | None = None
    residuals: Residuals | None = None
    mean_square: Number | None = None
    files: dict[FileName, FileAbout] = Field(default_factory=dict)


class LogLine(Stored):
    """A line of `guard.jsonl`, and the fields that the lines of all logs have."""

    model_config = ConfigDict(frozen=True, extra="allow")

    samples_seen: Count


class Times(Stored):
    """Seconds of an interval of metrics: wall time, processor time, and wall time by part."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Number | None]

    total_s: Number = 0.0
    cpu_s: Number = 0.0


class MetricsLine(LogLine):
    """A line of `metrics.jsonl`. A number that is not finite is null."""

    __pydantic_extra__: dict[str, Number | None]

    time: Times
    num_frozen: Count = 0


class EventLine(LogLine):
    """A line of `events.jsonl`. A line with evidence also has a decision."""

    stage: Count
    held_out_mse: Number | None = None
    evidence: dict[str, Number | None] | None = None
    decision: str | None = None
    state: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_all_of_a_decision(self) -> "EventLine":
        if self.evidence is not None:
            lacking = EVIDENCE - self.evidence.keys() or STATE - (self.state or {}).keys()
            if self.decision is None or lacking:
                raise ValueError(f"evidence needs a decision, its numbers and a state; {sorted(lacking)} are missing")
        return self
