"""Pictures as bytes: grids of images (PNG) and small charts (SVG).

Every chart has the width of a phone's screen, so that its text is readable there. Pages put several charts in a row.

Shapes: N images or latents, C H W image, T steps of a chain.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from torch import Tensor

from ebmscale.density.langevin import ChainTrace

POSTERIOR_COLOUR, PRIOR_COLOUR = "#0072b2", "#d55e00"
MARK_COLOURS = {
    "Settling": "#8a8a8a",
    "New round": "#b07d00",
    "Advance": "#008f68",
    "RollBack": "#c62828",
    "Finish": "#1a1a1a",
}
PART_COLOURS = ("#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#6b5b95", "#bdbdbd")

WIDTH, HEIGHT = 4.0, 2.5  # inches
HISTOGRAM_BINS = 30
MARGIN = 0.06  # at the right of the highest dot, as a share of the axis
MOST_DOTS = 60  # a curve with more points is drawn without dots
STYLE: Any = {
    "font.size": 9.5,
    "svg.hashsalt": "ebmscale",  # the same run gives the same bytes
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


class Curve(NamedTuple):
    """One curve of a timeline: values y at samples_seen x, and optionally the half width of a band around it."""

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    band: Sequence[float] | None = None


class Mark(NamedTuple):
    """A decision of the scheduler at samples_seen `at`. `kind` is a key of MARK_COLOURS."""

    at: int
    kind: str


def data_uri(data: bytes, media_type: str) -> str:
    """The bytes as a data URI, which a page can show without another file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def energy_histogram(posterior: Tensor, prior: Tensor) -> bytes:
    """Histograms of energies (N,) of posterior and prior latents; see `histogram`."""
    return histogram({"posterior z⁺": posterior, "prior z⁻": prior}, "energy (nats)")


@matplotlib.rc_context(STYLE)
def histogram(sides: Mapping[str, Tensor], label: str) -> bytes:
    """Histograms of values (N,) of one or two kinds, with common bins.

    The outermost bins hold the lowest and highest 0.5 % of the values.

    Args:
        sides: the values by the name of their kind.
        label: of the values.
    """
    figure, axes = _new_chart(label, "density")
    finite = torch.cat([values[values.isfinite()] for values in sides.values()]).double()
    if len(finite) == 0:
        axes.text(0.5, 0.5, f"no finite {label.split(' ', maxsplit=1)[0]}", transform=axes.transAxes, ha="center")
        return _svg(figure)
    low, high = np.quantile(finite.numpy(), [0.005, 0.995])
    bins = np.linspace(low, max(high, low + 1e-6), HISTOGRAM_BINS + 1).tolist()
    for (name, values), colour in zip(sides.items(), (POSTERIOR_COLOUR, PRIOR_COLOUR), strict=False):
        inside = values[values.isfinite()].double().clamp(low, high).numpy()
        axes.hist(inside, bins, density=True, histtype="stepfilled", color=colour, alpha=0.3)
        axes.hist(inside, bins, density=True, histtype="step", color=colour, label=name)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _legend_above(axes)
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def point_cloud(points: Tensor, reference: Tensor) -> bytes:
    """A PNG of points (N, 2) on the points (M, 2) of a reference, whose range it shows."""
    figure = Figure(figsize=(HEIGHT, HEIGHT), layout="constrained", dpi=120)
    axes = figure.subplots()
    for values, colour in ((reference, "#bbbbbb"), (points, PRIOR_COLOUR)):
        axes.scatter(values[:, 0].numpy(), values[:, 1].numpy(), s=4, color=colour, alpha=0.6, linewidths=0)
    low, high = reference.quantile(0.001, dim=0), reference.quantile(0.999, dim=0)
    margin = 0.1 * (high - low).clamp(min=1e-6)
    axes.set_xlim(*torch.stack([low - margin, high + margin])[:, 0].tolist())
    axes.set_ylim(*torch.stack([low - margin, high + margin])[:, 1].tolist())
    axes.set(xticks=[], yticks=[])
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


@matplotlib.rc_context(STYLE)
def timeline(
    curves: Sequence[Curve],
    marks: Sequence[Mark],
    starts: Mapping[int, int],
    end: int,
    level: tuple[float, str] | None = None,
) -> bytes:
    """Curves over samples_seen, with bands for the stages and vertical lines for the decisions.

    Args:
        curves: the curves. Curves with the same label have the same colour.
        marks: decisions.
        starts: stage -> samples_seen at its start.
        end: samples_seen at the right edge.
        level: a value and its name, drawn as a horizontal dotted line.
    """
    figure, axes = _new_chart("samples seen")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(0, max(end, 1))
    _draw_stages(axes, starts, end)
    for mark in marks:
        axes.axvline(mark.at, color=MARK_COLOURS[mark.kind], linestyle="-" if mark.kind == "Advance" else "--", lw=1)
    if level is not None:
        value, name = level
        axes.axhline(value, color="#444444", linestyle=(0, (1, 2)), lw=1)
        axes.text(0.01, value, name, transform=axes.get_yaxis_transform(), fontsize=8, va="bottom")
    labels = list(dict.fromkeys(curve.label for curve in curves))
    for curve in curves:
        colour = (POSTERIOR_COLOUR, PRIOR_COLOUR)[labels.index(curve.label) % 2]
        x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
        axes.plot(x, y, color=colour, marker="o" if len(x) <= MOST_DOTS else "", ms=3, clip_on=False)
        if curve.band is not None:
            half = np.asarray(curve.band, float)
            axes.fill_between(x, y - half, y + half, color=colour, alpha=0.2, lw=0)
    if len(labels) > 1:
        for label, colour in zip(labels, (POSTERIOR_COLOUR, PRIOR_COLOUR), strict=False):
            axes.plot([], [], color=colour, label=label)
        axes.legend(loc="upper right", bbox_to_anchor=(1, 0.92))
    axes.margins(y=0.15)
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def chain_chart(trace: ChainTrace) -> bytes:
    """Two charts of a chain: mean log density (T,), and below it the mean lengths of drift and diffusion (T,)."""
    figure = Figure(figsize=(WIDTH, HEIGHT * 1.35), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    steps = np.arange(1, len(trace.log_density) + 1)
    above.plot(steps, trace.log_density.numpy(), color="#222222")
    above.set_ylabel("log density")
    below.plot(steps, trace.drift.numpy(), color=POSTERIOR_COLOUR, label="drift")
    below.plot(steps, trace.diffusion.numpy(), color=PRIOR_COLOUR, label="diffusion")
    below.set(xlabel="step", ylabel="length", ylim=(0, None))
    below.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    below.margins(y=0.15)
    _legend_above(below)
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def fraction_chart(edges: Sequence[float], fractions: Mapping[str, Sequence[float]]) -> bytes:
    """Fraction of time by part, stacked, for every interval between two `edges` (one more than values)."""
    figure, axes = _new_chart("samples seen", "fraction of time")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    rows = [[values[0], *values] for values in map(list, fractions.values())]
    axes.stackplot(edges, rows, step="pre", colors=PART_COLOURS, lw=0)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1))
    axes.yaxis.set_major_formatter(lambda fraction, _: f"{fraction:.0%}")
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def speed_chart(edges: Sequence[float], speeds: Sequence[float]) -> bytes:
    """Samples per second in every interval between two `edges` (one more than speeds)."""
    figure, axes = _new_chart("samples seen", "samples/s")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.stairs(speeds, edges, baseline=None, color=POSTERIOR_COLOUR, lw=1.5)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, None))
    axes.margins(y=0.15)
    return _svg(figure)


@matplotlib.rc_context(STYLE)
def dot_chart(values: Mapping[str, Sequence[float]], origin: float | None = None) -> bytes:
    """A row for every name, from top to bottom, with a dot for every value, and a bar at the mean of several.

    Args:
        values: by name.
        origin: where the axis starts; None: near the values. Values below it are shown too.
    """
    figure, axes = _new_chart("")
    figure.set_size_inches(WIDTH, max(HEIGHT, 0.6 + 0.28 * len(values)))
    for place, row in enumerate(values.values()):
        axes.plot(row, [place] * len(row), "o", color=POSTERIOR_COLOUR, alpha=0.6, markersize=4)
        if len(row) > 1:
            mean = sum(row) / len(row)
            axes.plot([mean, mean], [place - 0.3, place + 0.3], color=PRIOR_COLOUR)
    axes.set_yticks(range(len(values)), list(values), parse_math=False)
    axes.invert_yaxis()
    finite = [value for row in values.values() for value in row if math.isfinite(value)]
    if origin is not None and finite and min(finite) >= origin:
        axes.set_xlim(origin, max(finite) + MARGIN * (max(finite) - origin))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return _svg(figure)


def _new_chart(xlabel: str, ylabel: str = "") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _legend_above(axes: Axes) -> None:
    """Puts the legend in one line above the axes, so that it covers no curve."""
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, borderaxespad=0.2)


def _draw_stages(axes: Axes, starts: Mapping[int, int], end: int) -> None:
    """Draws a band with a number above it for every stage. Every second band is shaded."""
    edges = [*starts.values(), end]
    for (stage, left), right in zip(starts.items(), edges[1:], strict=True):
        if stage % 2 == 0:
            axes.axvspan(left, right, color="#f1f1f1", zorder=0, lw=0)
        if right - left > 0.06 * end:  # a narrower band has no room for the number
            text = f"k={stage}" if right - left > 0.12 * end else str(stage)
            middle, transform = (left + right) / 2, axes.get_xaxis_transform()
            axes.text(middle, 1.0, text, transform=transform, ha="center", va="bottom", fontsize=8, color="#666666")


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue()
