"""The result of a comparison as a Markdown table, as JSON, and as one page with charts and samples of all rows."""

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from ebmscale.evaluate.verdicts import KNOWN_LOG_Z
from ebmscale.report import pictures
from ebmscale.report.pages import Picture, render
from ebmscale.report.result import Result
from ebmscale.report.run_report import SAMPLES_FILE
from ebmscale.report.shares import with_shares
from ebmscale.storage import Storage
from ebmscale.terminal import shown
from ebmscale.version import __version__

TABLE_FILE, JSON_FILE, PAGE_FILE = "comparison.md", "comparison.json", "comparison.html"
COST = ("samples", "cpu_s", "stages")
LESS_IS_BETTER = ("mse", "FD", "FID", "KD-", "KID", "bits", "r_hat")
NATS = "nats"
LAST_GAP = "gap"
"""The gap under the last prior of a row: mean log density of posteriors minus that of samples. 0 is best."""
DIAGNOSTICS = (
    *("width", "log_z", "log_z_bridge", "r_hat_steps", "drift", "prevalence", "nats_base"),
    *("log_likelihood_importance", "log_likelihood_annealed", "log_likelihood_upper", "bits_per_dim_importance"),
    "gap",  # of the two bounds on a likelihood
)
"""They tell of one measurement, or another column tells the same. They are in the JSON file."""
FROM_CHANCE = ("auroc_", "auc")  # 0.5 is chance
SAME_FACT = ("mse_unit", "psnr")  # the same as `mse` in other units
WIDE_COLUMNS, WIDEST_COLUMNS = 5, 9  # a table with more columns is wider than a phone, than any screen

_GAP = re.compile(r"gap_p\d+")


def write_comparison(storage: Storage, name: str, about: str, results: Sequence[Result]) -> str:
    """Writes table, JSON and page to the storage of the comparison.

    Returns:
        The table as Markdown.
    """
    tree = {"name": name, "about": about, "ebmscale": __version__, "results": [asdict(result) for result in results]}
    storage.publish(JSON_FILE, json.dumps(tree, indent=1).encode())
    results = with_shares(results)
    table = markdown_table(results)
    storage.publish(TABLE_FILE, table.encode())
    header, rows = _cells(results)
    page = render(
        PAGE_FILE,
        name=name,
        about=about,
        spread=_spread(results),
        header=header,
        rows=rows,
        best=best(results, header),
        scrolls="" if len(header) <= WIDE_COLUMNS else "always" if len(header) > WIDEST_COLUMNS else "on a phone",
        charts=_charts(results),
        samples=_samples(storage, results),
    )
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
        for name, value in _compared(result.measured).items():
            row.setdefault(name, []).append(value)
    return found


def _compared(measured: Mapping[str, float]) -> dict[str, float]:
    """The values by which rows are compared. Of the gaps under p_0, p_1, ... only the last one counts."""
    gaps = {int(name.removeprefix("gap_p")): measured[name] for name in measured if _GAP.fullmatch(name)}
    kept = {
        name: value
        for name, value in measured.items()
        if not _GAP.match(name) and name.removesuffix("_error") not in DIAGNOSTICS
    }
    if not gaps:
        return kept
    at = next(place for place, name in enumerate(measured) if _GAP.match(name))
    before = {name: kept[name] for name in list(measured)[:at] if name in kept}
    return before | {LAST_GAP: gaps[max(gaps)]} | kept


def _quantities(results: Sequence[Result]) -> list[str]:
    """The columns of the table: without counts, and without standard errors."""
    names = dict.fromkeys(name for result in results for name in _compared(result.measured))
    beside = {f"{name}_error" for name in names} | set(COST)
    kept = [name for name in names if name not in beside and not name.startswith("num_")]
    return [*kept, *(name for name in COST if name in names)]


def _spread(results: Sequence[Result]) -> str:
    """A sentence on what the numbers of the table are."""
    num_seeds = max((len(values) for row in summarise(results).values() for values in row.values()), default=0)
    if num_seeds < 2:
        return "Every value is of one seed, measured on the final checkpoint. Its variation between seeds is unknown."
    return "Every value is the mean ± standard deviation over the seeds, measured on the final checkpoints."


def best(results: Sequence[Result], header: Sequence[str]) -> list[list[bool]]:
    """For every row and column of the table: whether the mean is the best of its column.

    Nats that are known only roughly are not compared.
    """
    found = summarise(results)
    means = {row: {name: statistics.fmean(values) for name, values in of.items()} for row, of in found.items()}
    for row in rough_nats(results):
        means[row].pop(NATS, None)
    least: dict[str, float] = {}
    for name in header:
        values = [of[name] for of in means.values() if name in of and math.isfinite(of[name])]
        if name not in COST and len(set(values)) > 1:
            least[name] = min(values, key=lambda value: _distance(name, value))
    return [[name in least and of.get(name) == least[name] for name in header] for of in means.values()]


def _distance(name: str, value: float) -> float:
    """How far a value is from the best one, up to a constant."""
    if name == LAST_GAP:
        return abs(value)
    return value if _less_is_better(name) else -value


def _less_is_better(name: str) -> bool:
    return any(word in name for word in LESS_IS_BETTER)


def _cells(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    names = _quantities(results)
    failed = {result.row: result.failure for result in results if result.failure}
    found, rows = summarise(results), []
    for row, texts in cells_by_row(results, names).items():
        num_seeds = max((len(one) for one in found[row].values()), default=0)
        rows.append([row, str(num_seeds), *texts, failed.get(row) or ""])
    header = ["row", "seeds", *names, "failed"]
    if not failed:
        return header[:-1], [row[:-1] for row in rows]
    return header, rows


def cells_by_row(results: Sequence[Result], names: Sequence[str]) -> dict[str, list[str]]:
    """The texts of every row for these quantities."""
    rough, found = rough_nats(results), dict[str, list[str]]()
    for row, values in summarise(results).items():
        texts = {name: cell(values[name]) if name in values else "-" for name in names}
        if row in rough and NATS in texts:
            texts[NATS] += f" (log Z ± {_number(rough[row])})"
        found[row] = [texts[name] for name in names]
    return found


def rough_nats(results: Sequence[Result]) -> dict[str, float]:
    """The rows whose nats are known only roughly, with the largest standard error of log Z over the seeds."""
    largest: dict[str, float] = {}
    for result in results:
        error = result.measured.get("log_z_error", 0.0)
        largest[result.row] = max(error, largest.get(result.row, error))
    return {row: error for row, error in largest.items() if not error <= KNOWN_LOG_Z}


def cell(values: Sequence[float]) -> str:
    """Mean and standard deviation of values, rounded; of one value, or of equal ones, the value alone."""
    mean = statistics.fmean(values)
    if len(set(values)) == 1:
        return _number(mean)
    return f"{_number(mean)} ± {_number(statistics.stdev(values))}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _charts(results: Sequence[Result]) -> list[Picture]:
    """One chart for every fact, with the rows from top to bottom and a dot for every seed."""
    found = summarise(results)
    charts = []
    for name in _quantities(results):
        values = {row: of_row[name] for row, of_row in found.items() if name in of_row}
        told = name in SAME_FACT and any("mse" in of_row for of_row in found.values())
        if name in COST or told or len({value for of_row in values.values() for value in of_row}) < 2:
            continue
        better = "lower is better" if _less_is_better(name) else "higher is better"
        better = "nearer to 0 is better" if name == LAST_GAP else better
        several = max(len(of_row) for of_row in values.values()) > 1
        note = f"{better}; {'every dot is a seed, the line is their mean' if several else 'one seed'}"
        chart = pictures.data_uri(pictures.dot_chart(values, _origin(name, values)), "image/svg+xml")
        charts.append(Picture(chart, name, note))
    return charts


def _origin(name: str, values: Mapping[str, Sequence[float]]) -> float | None:
    """Where the axis of a quantity starts: at 0, at chance, or near its values if neither has a meaning."""
    if name.startswith(FROM_CHANCE):
        return 0.5
    finite = [value for of_row in values.values() for value in of_row if math.isfinite(value)]
    return 0.0 if finite and min(finite) >= 0 and name != "psnr" else None


def _samples(storage: Storage, results: Sequence[Result]) -> list[Picture]:
    """The samples of the first seed of every row. The runs are folders in the storage of the comparison."""
    first: dict[str, Picture] = {}
    for result in results:
        file = f"{result.url.rpartition('/')[2]}/{SAMPLES_FILE}"
        if result.row not in first and not result.failure and storage.exists(file):
            uri = pictures.data_uri(storage.read_bytes(file), "image/png")
            first[result.row] = Picture(uri, f"{result.row}, seed {result.seed}")
    return list(first.values())
