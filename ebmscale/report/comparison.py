"""The result of a comparison as a Markdown table, as JSON, and as one page with charts and samples of all rows."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ebmscale.report import pictures
from ebmscale.report.pages import Picture, render
from ebmscale.report.run_report import SAMPLES_FILE
from ebmscale.storage import Storage
from ebmscale.terminal import shown
from ebmscale.version import __version__

TABLE_FILE, JSON_FILE, PAGE_FILE = "comparison.md", "comparison.json", "comparison.html"
COST = ("samples", "cpu_s", "stages")
LESS_IS_BETTER = ("mse", "FD", "FID", "KD-", "KID", "bits")


@dataclass(frozen=True)
class Result:
    """The result of one run.

    Attributes:
        row: its name in the table.
        seed: of the run.
        url: address of the run.
        measured: values by name; empty if the run failed.
        failure: why the run failed; None if it did not.
    """

    row: str
    seed: int
    url: str
    measured: dict[str, float]
    failure: str | None


def write_comparison(storage: Storage, name: str, about: str, results: Sequence[Result]) -> str:
    """Writes table, JSON and page to the storage of the comparison.

    Returns:
        The table as Markdown.
    """
    table = markdown_table(results)
    tree = {"name": name, "about": about, "ebmscale": __version__, "results": [asdict(result) for result in results]}
    storage.publish(JSON_FILE, json.dumps(tree, indent=1).encode())
    storage.publish(TABLE_FILE, table.encode())
    header, rows = _cells(results)
    charts, samples = _charts(results), _samples(storage, results)
    page = render(PAGE_FILE, name=name, about=about, header=header, rows=rows, charts=charts, samples=samples)
    storage.publish(PAGE_FILE, page.encode())
    return table


def markdown_table(results: Sequence[Result]) -> str:
    """A table with one line for every row: mean and standard deviation of every quantity over the seeds."""
    header, rows = _cells(results)
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = (" | ".join(shown(cell).replace("|", "\\|") for cell in cells) for cells in (header, rule, *rows))
    return "".join(f"| {line} |\n" for line in lines)


def summarise(results: Sequence[Result]) -> dict[str, dict[str, list[float]]]:
    """Row -> quantity -> values in the order of the seeds. A run that failed has no values."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        row = found.setdefault(result.row, {})
        for name, value in result.measured.items():
            row.setdefault(name, []).append(value)
    return found


def _quantities(results: Sequence[Result]) -> list[str]:
    names = dict.fromkeys(name for result in results for name in result.measured)
    return [*(name for name in names if name not in COST), *(name for name in COST if name in names)]


def _cells(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    names = _quantities(results)
    failed = {result.row: result.failure for result in results if result.failure}
    rows = []
    for row, values in summarise(results).items():
        num_seeds = max((len(one) for one in values.values()), default=0)
        cells = [_cell(values[name]) if name in values else "-" for name in names]
        rows.append([row, str(num_seeds), *cells, failed.get(row) or ""])
    header = ["row", "seeds", *names, "failed"]
    if not failed:
        return header[:-1], [row[:-1] for row in rows]
    return header, rows


def _cell(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) == 1:
        return _number(mean)
    return f"{_number(mean)} ± {_number(statistics.stdev(values))}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _charts(results: Sequence[Result]) -> list[Picture]:
    """One chart for every quantity, with the rows from top to bottom and a dot for every seed."""
    found = summarise(results)
    charts = []
    for name in _quantities(results):
        values = {row: of_row[name] for row, of_row in found.items() if name in of_row}
        if name in COST or len({value for of_row in values.values() for value in of_row}) < 2:
            continue
        better = "lower is better" if any(word in name for word in LESS_IS_BETTER) else "higher is better"
        chart = pictures.data_uri(pictures.dot_chart(values), "image/svg+xml")
        charts.append(Picture(chart, name, f"{better}; every dot is a seed"))
    return charts


def _samples(storage: Storage, results: Sequence[Result]) -> list[Picture]:
    """The samples of the first seed of every row. The runs are folders in the storage of the comparison."""
    first: dict[str, Picture] = {}
    for result in results:
        file = f"{result.url.rpartition('/')[2]}/{SAMPLES_FILE}"
        if result.row not in first and not result.failure and storage.exists(file):
            uri = pictures.data_uri(storage.read_bytes(file), "image/png")
            first[result.row] = Picture(uri, f"{result.row}, seed {result.seed}")
    return list(first.values())
