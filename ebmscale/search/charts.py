"""Charts of a search (SVG): parallel coordinates, importances, the metrics of all trials, and a Pareto front."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ebmscale.report.pictures import STYLE, _legend_above, _new_chart, _svg

COLOURS = matplotlib.colormaps["viridis_r"]  # dark means good
PALE = "#c9c9c9"
AXIS_WIDTH, CHART_HEIGHT = 1.35, 3.6  # inches
HEADING_CHARS = 16


class Axis(NamedTuple):
    """One axis of the parallel coordinates.

    Attributes:
        name: its heading.
        values: one for every trial, None if the trial has none.
        choices: the values in their order, if they are not numbers of a range.
        log: whether the scale is logarithmic.
    """

    name: str
    values: Sequence[Any]
    choices: Sequence[str] | None = None
    log: bool = False


@matplotlib.rc_context(STYLE)
def parallel_coordinates(axes: Sequence[Axis], goodness: Sequence[float | None]) -> bytes:
    """A line for every trial across all axes; dark means good, grey means no value.

    Args:
        axes: from left to right.
        goodness: of every trial, in [0, 1]; None for one that cannot be compared.
    """
    figure = Figure(figsize=(AXIS_WIDTH * max(len(axes), 3), CHART_HEIGHT), layout="constrained")
    chart = figure.subplots()
    heights = [_draw_axis(chart, place, axis) for place, axis in enumerate(axes)]
    order = sorted(range(len(goodness)), key=lambda t: (goodness[t] is not None, goodness[t] or 0.0))
    for trial in order:  # the best on top
        value = goodness[trial]
        y = np.array([np.nan if of_axis[trial] is None else of_axis[trial] for of_axis in heights], float)
        style: dict[str, Any] = (
            {"color": PALE, "lw": 1.0} if value is None else {"color": COLOURS(value), "lw": 1.6, "alpha": 0.9}
        )
        known = np.flatnonzero(~np.isnan(y))
        chart.plot(known, y[known], linestyle=(0, (1, 2)), **style)  # dotted across axes where the trial has no value
        chart.plot(np.arange(len(axes)), y, marker="o", ms=3, clip_on=False, **style)
    chart.set(xlim=(-0.1, len(axes) - 0.9), ylim=(-0.08, 1.02))
    chart.axis("off")
    return _svg(figure)


def _draw_axis(chart: Axes, place: int, axis: Axis) -> list[float | None]:
    """Draws an axis; returns the height of each trial on it."""
    chart.plot([place, place], [0, 1], color="#666666", lw=1)
    head, _, tail = axis.name.rpartition(".")
    heading = f"{head}.\n{tail}" if len(axis.name) > HEADING_CHARS and head else axis.name
    chart.text(place, 1.06, heading, ha="center", va="bottom", fontsize=8.5)
    if axis.choices is not None:
        rows = {str(name): (i + 0.5) / len(axis.choices) for i, name in enumerate(axis.choices)}
        for name, y in rows.items():
            chart.text(place - 0.04, y, name, ha="right", va="center", fontsize=8, color="#444444", parse_math=False)
        return [None if value is None else rows[str(value)] for value in axis.values]
    known = [float(value) for value in axis.values if value is not None]
    if not known:
        return [None] * len(axis.values)
    low, high = min(known), max(known)
    for y, value, va in ((-0.015, low, "top"), (1.005, high, "bottom")):
        chart.text(place, y, f"{value:.3g}", ha="center", va=va, fontsize=8, color="#444444")

    def height(value: float) -> float:
        if high == low:
            return 0.5
        if axis.log:
            return float(np.log(value / low) / np.log(high / low))
        return (value - low) / (high - low)

    return [None if value is None else height(float(value)) for value in axis.values]


@matplotlib.rc_context(STYLE)
def importance_chart(importances: Mapping[str, float]) -> bytes:
    """Bars: the share of the objective's variance that each key explains."""
    figure, axes = _new_chart("share of the variance")
    order = sorted(importances, key=lambda key: importances[key])
    axes.barh(order, [importances[key] for key in order], color="#0072b2")
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlim(left=0.0)
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def courses_chart(
    courses: Sequence[tuple[Sequence[float], Sequence[float]]], goodness: Sequence[float | None], label: str
) -> bytes:
    """The metric of an objective over the samples seen, for every trial."""
    figure, axes = _new_chart("samples seen", label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    order = sorted(range(len(courses)), key=lambda t: (goodness[t] is not None, goodness[t] or 0.0))
    for trial in order:
        x, y = courses[trial]
        value = goodness[trial]
        axes.plot(x, y, color=PALE if value is None else COLOURS(value), lw=1.2, marker="o", ms=2)
    known = [value for _, y in courses for value in y]
    if known and min(known) > 0 and max(known) > 5 * min(known):
        axes.set_yscale("log")
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def pareto_chart(
    points: Sequence[tuple[float, float]], numbers: Sequence[int], front: Sequence[int], labels: tuple[str, str]
) -> bytes:
    """A scatter plot of two objectives; the trials of the front are marked and numbered."""
    figure, axes = _new_chart(*labels)
    for number, (x, y) in zip(numbers, points, strict=True):
        axes.scatter(x, y, s=22, color="#d55e00" if number in front else PALE)
        if number in front:
            axes.annotate(str(number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.scatter([], [], s=22, color="#d55e00", label="Pareto front")
    axes.scatter([], [], s=22, color=PALE, label="dominated")
    _legend_above(axes)
    return _svg(figure)


def goodness(values: Sequence[float | None], sign: int) -> list[float | None]:
    """The ranks of values as numbers in [0, 1], with 1 for the best. `sign` is 1 if smaller values are better."""
    known = sorted({sign * value for value in values if value is not None}, reverse=True)
    scale = Normalize(0, max(len(known) - 1, 1))
    return [None if value is None else float(scale(known.index(sign * value))) for value in values]
