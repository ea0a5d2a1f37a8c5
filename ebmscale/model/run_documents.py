"""What the documents of a checkpoint hold: its manifest, the run's state and the clock, as models.

A checkpoint whose checksums are right may still be another program's, or a stranger's.
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
    """Plain numbers, kept in every checkpoint.

    Attributes:
        error: running mean of the squared error per pixel.
        num_good: updates in it.
        ratio_loss: running mean of the ratio's loss in this round of its stage.
        ratio_num_good: batches in it.
        ratio_round: the stage and where it started, of which `ratio_loss` tells.
        bad_in_row: updates skipped one after another.
        rollbacks: how often the run was set back.
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


EVIDENCE = {"loss", "auc", "kl_bound", "kl_bound_error", "ess"}  # what readers of events rely on
STATE = {"started", "settling_since"}
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Stem = Annotated[str, Field(pattern=r"^[a-z]{1,32}$")]


class FileAbout(Stored):
    """A file of a checkpoint: its size and checksum; of a part the stem and the spans (name, start, length) too."""

    num_bytes: Count
    sha256: Sha256
    stem: Stem | None = None
    spans: tuple[tuple[str, Count, Count], ...] = ()


class RatioAbout(Stored):
    """The file of a frozen ratio, which lies in the run's folder of ratios."""

    file: Annotated[str, Field(pattern=r"^ratios/[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$")]
    num_bytes: Count
    sha256: Sha256


class CheckpointManifest(Stored):
    """The manifest of a checkpoint.

    Attributes:
        samples_seen: position of the run.
        stage: that was in training.
        good: whether no update had been left out just before.
        metrics: by which checkpoints are kept.
        files: its own files by name.
        ratios: the frozen ratios, in the order of their stages.
        tensors: the shape of every tensor, by stem and name.
    """

    samples_seen: Count | None = None  # the name of the folder says it too, and counts
    stage: Count | None = None
    good: bool = True
    metrics: dict[str, Number] = Field(default_factory=dict)
    files: dict[FileName, FileAbout]
    ratios: list[RatioAbout]
    tensors: dict[Stem, dict[str, list[Count]]]


class StagesForm(Stored):
    """The plain values of a `RatioTrainer`."""

    stage: StageState
    grad_norm: Number
    fits_base: bool = False

    @model_validator(mode="after")
    def _counts_are_counts(self) -> "StagesForm":
        _check_counts(asdict(self.stage))
        return self


class DoneAt(Stored):
    """The positions at which evidence, metrics and a checkpoint were last taken."""

    evidence: Count
    metrics: Count
    checkpoint: Count


class RunState(Stored):
    """`state.json`: the plain values of a run, as `Run.save` writes them."""

    samples_seen: Count
    done_at: DoneAt
    image_shape: tuple[Size, Size, Size]
    stages: StagesForm
    guard: GuardState
    measured: dict[str, Number]
    meters: list[dict[str, tuple[Number, Number]]]
    residuals: Residuals | None = None
    form: FormName | None = None
    posterior_steps: Count | None = None

    @model_validator(mode="after")
    def _counts_are_counts(self) -> "RunState":
        _check_counts(asdict(self.guard))
        return self


class ClockState(Stored):
    """`clock.json`: the seconds of the interval that a checkpoint interrupts, as `PartTimer.values` gives them."""

    parts: dict[str, Seconds]
    total: Seconds
    cpu: Seconds

    @model_validator(mode="after")
    def _parts_are_known(self) -> "ClockState":
        if set(self.parts) - set(PARTS):
            raise ValueError(f"parts are {', '.join(PARTS)}")
        return self


def _check_counts(values: dict[str, Any]) -> None:
    """Whole numbers of a state are counts."""
    for name, value in values.items():
        if any(type(one) is int and not 0 <= one < 2**63 for one in (value if isinstance(value, tuple) else [value])):
            raise ValueError(f"{name} is no count")


class ExportAbout(Stored):
    """`model.json` of an export. Exports of earlier versions have no checksums (`files`) and no `num_stages`."""

    format_version: int
    samples_seen: Count
    image_shape: tuple[Size, Size, Size]
    config: dict[str, Any]
    num_stages: Count | None = None
    residuals: Residuals | None = None
    files: dict[FileName, FileAbout] = Field(default_factory=dict)


class LogLine(Stored):
    """A line of `guard.jsonl`, and what lines of all logs have."""

    model_config = ConfigDict(frozen=True, extra="allow")

    samples_seen: Count


class Times(Stored):
    """Seconds of an interval: in all, of processors, by part."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, Number | None]

    total_s: Number = 0.0
    cpu_s: Number = 0.0


class MetricsLine(LogLine):
    """A line of `metrics.jsonl`; what is no finite number is null."""

    __pydantic_extra__: dict[str, Number | None]

    time: Times
    num_frozen: Count = 0


class EventLine(LogLine):
    """A line of `events.jsonl`; with evidence comes a decision."""

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
                raise ValueError(f"evidence comes with a decision, its numbers and a state, {sorted(lacking)} lack")
        return self
