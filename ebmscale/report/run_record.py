"""The events and metrics of a run, read for the report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ebmscale.evaluate.verdict import Fit, Stage
from ebmscale.model.run_documents import EventLine, MetricsLine
from ebmscale.model.timed_parts import PARTS
from ebmscale.report.pictures import Curve, Mark
from ebmscale.storage import Storage
from ebmscale.training.metrics import EVENTS_FILE, METRICS_FILE, read_lines

Line = dict[str, Any]
OTHER = "other"


@dataclass(frozen=True)
class RunRecord:
    """The lines of a run's `events.jsonl` and `metrics.jsonl`, oldest first."""

    events: list[Line]
    metrics: list[Line]

    @classmethod
    def of(cls, run: Storage) -> "RunRecord":
        """The record of a run. It is empty if the run has written no lines yet."""
        metrics = read_lines(run, METRICS_FILE, MetricsLine)
        return cls(read_lines(run, EVENTS_FILE, EventLine), [line for line in metrics if "total_s" in line["time"]])

    @property
    def end(self) -> int:
        """samples_seen of the last line; 0 if there is no line."""
        return max((line["samples_seen"] for line in self.events + self.metrics), default=0)

    @property
    def measured(self) -> list[Line]:
        """The events with evidence of a ratio, and so with a decision."""
        return [event for event in self.events if "evidence" in event]

    def stages(self, num_stages: int, live: bool) -> list[Stage]:
        """The stages of a prior with their KL bounds: the last measurement that froze each.

        Args:
            num_stages: K of the prior.
            live: whether its ratios are trained together and never frozen; then the last measurement of each counts.
        """
        found: dict[int, Stage] = {}
        for event in self.measured if live else self.frozen(num_stages):
            if event["stage"] <= num_stages:
                bound, error = (number(event["evidence"][name]) for name in ("kl_bound", "kl_bound_error"))
                found[event["stage"]] = Stage(event["stage"], bound, error)
        return [found[stage] for stage in sorted(found)]

    def frozen(self, num_stages: int) -> list[Line]:
        """The events that froze a stage of the prior, which has K = `num_stages` stages."""
        return [
            event
            for event in self.measured
            if event.get("freeze", event["decision"] == "Advance") and event["stage"] <= num_stages
        ]

    def checks(self, num_stages: int) -> dict[int, Fit]:
        """How p_k fitted the posteriors of its time, by stage; nothing of stages that earlier versions froze.

        Args:
            num_stages: K of the prior.
        """
        return {
            check["stage"]: Fit(check["stage"], -number(check["difference"]), number(check["error"]))
            for event in self.frozen(num_stages)
            for check in event.get("checks", [])
        }

    @property
    def wall_s(self) -> float | None:
        """Seconds of all recorded intervals; None if there is none."""
        return sum(line["time"]["total_s"] for line in self.metrics) if self.metrics else None

    def marks(self) -> list[Mark]:
        """Every decision, except a Hold that does not change the stage."""
        kinds = zip(self.measured, self.kinds, strict=True)
        return [Mark(event["samples_seen"], kind) for event, kind in kinds if kind != "Hold"]

    @property
    def kinds(self) -> list[str]:
        """The kind of every event in `measured`: the name of its decision, or "Settling" or "New round" for a Hold."""
        kinds = [_kind(event) for event in self.measured]
        return ["Hold" if kind == "New round" else kind for kind in kinds[:1]] + kinds[1:]

    def starts(self) -> dict[int, int]:
        """Stage -> samples_seen at its start."""
        advances = [event for event in self.measured if event["decision"] == "Advance"]
        first = {1: 0} if self.measured else {}
        return first | {event["stage"] + 1: event["samples_seen"] for event in advances}

    def evidence(self, name: str, band: str | None = None) -> list[Curve]:
        """One number of the evidence over time, with a curve for every ratio.

        Args:
            name: of the number.
            band: name of its standard error. The band reaches two standard errors to either side.
        """
        return [
            Curve(
                [event["samples_seen"] for event in events],
                [number(event["evidence"][name]) for event in events],
                band=[2 * number(event["evidence"][band]) for event in events] if band else None,
            )
            for events in self._by_ratio()
        ]

    def memorised(self) -> list[Curve]:
        """By how much the loss on what no update uses is above that on what updates use, for both sides over time."""
        sides = {"posteriors": ("held_out", "train"), "negatives": ("fresh", "used")}
        found = []
        for events in self._by_ratio():
            for label, (unseen, seen) in sides.items():
                known = [event for event in events if seen in (event.get("memorised") or {})]
                gaps = [number(event["memorised"][unseen]) - number(event["memorised"][seen]) for event in known]
                found.append(Curve([event["samples_seen"] for event in known], gaps, label))
        return [curve for curve in found if curve.x]

    def _by_ratio(self) -> list[list[Line]]:
        """The events with evidence, a list for every ratio that started from nothing."""
        ratios: list[list[Line]] = [[]]
        for event in self.measured:
            ratios[-1].append(event)
            if event["decision"] in ("Advance", "RollBack"):
                ratios.append([])
        return [events for events in ratios if events]

    def squared_errors(self) -> list[Curve]:
        """Mean squared error of reconstructions over time, for held-out images and for training images."""
        return [_curve(self.events, "held_out_mse", "held-out"), _curve(self.metrics, "train/mse", "training")]

    def edges(self) -> list[int]:
        """samples_seen at the edges of the intervals of metrics, one more than there are intervals."""
        return [0, *(line["samples_seen"] for line in self.metrics)]

    def speeds(self) -> list[float]:
        """Samples per second in every interval."""
        edges = self.edges()
        return [
            (after - before) / max(line["time"]["total_s"], 1e-9)
            for before, after, line in zip(edges, edges[1:], self.metrics, strict=False)
        ]

    def seconds(self) -> dict[str, list[float]]:
        """Seconds by part in every interval. `OTHER` is the time outside the named parts."""
        times = [line["time"] for line in self.metrics]
        parts = {part: [time.get(f"{part}_s", 0.0) for time in times] for part in PARTS}
        in_parts = [sum(values) for values in zip(*parts.values(), strict=True)]
        return parts | {OTHER: [max(time["total_s"] - known, 0.0) for time, known in zip(times, in_parts, strict=True)]}


def _kind(event: Line) -> str:
    state = event["state"]
    if event["decision"] != "Hold":
        return event["decision"]
    if state["settling_since"] == event["samples_seen"]:
        return "Settling"
    return "New round" if state["started"] == event["samples_seen"] else "Hold"


def _curve(lines: list[Line], key: str, label: str) -> Curve:
    lines = [line for line in lines if key in line]
    return Curve([line["samples_seen"] for line in lines], [number(line[key]) for line in lines], label)


def number(value: float | None) -> float:
    """A recorded number. A null, which stands for a number that was not finite, becomes NaN."""
    return math.nan if value is None else value


def fractions(seconds: dict[str, list[float]]) -> dict[str, Sequence[float]]:
    """The fraction of the time of every interval that every part takes."""
    totals = [max(sum(values), 1e-9) for values in zip(*seconds.values(), strict=True)]
    return {part: [v / t for v, t in zip(values, totals, strict=True)] for part, values in seconds.items()}
