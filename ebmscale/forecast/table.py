"""A plan as tables and sentences for the screen."""

from rich.table import Table

from ebmscale.config import RunConfig
from ebmscale.forecast.plan import Plan, WorkersForecast


def forecast_table(plan: Plan) -> Table:
    """One line for every number of workers and engine."""
    table = Table(
        *("workers", "engine", "rows", "GB", "MB sent", "update", "network", "samples/s", "efficiency"),
        title="plan: memory of a worker, bytes sent in an update, and time of an update",
        padding=(0, 0),
        collapse_padding=True,
    )
    for column in table.columns[2:]:
        column.justify = "right"
    previous: int | None = None
    for line in plan.forecasts:
        if previous not in (None, line.size):
            table.add_section()
        previous = line.size
        table.add_row(
            f"{line.size:,}",
            line.engine.name,
            f"{line.share.num_rows:,}",
            f"{(line.memory.peak + plan.process_bytes + _set_bytes(plan)) / 1e9:.2f}",
            f"{line.traffic.num_bytes / 1e6:.1f}",
            *_times(line),
        )
    return table


def _times(line: WorkersForecast) -> tuple[str, str, str, str]:
    if line.update_s is None or line.samples_per_s is None or line.efficiency is None:
        return "-", f"{line.network_s:.4f} s", "-", "-"
    return f"{line.update_s:.4f} s", f"{line.network_s:.4f} s", f"{line.samples_per_s:,.0f}", f"{line.efficiency:.1%}"


def breakdown_table(plan: Plan, config: RunConfig) -> Table:
    """The parts of the memory, for the engine that the configuration selects on each number of workers."""
    stage = config.deepspeed.zero_stage
    chosen = {line.size: line for line in plan.forecasts if line.engine.zero_stage in (None, stage)}
    names = [f"{line.size:,} x {line.engine.name}" for line in chosen.values()]
    table = Table("MB of a worker", *names, title="parts of the memory", padding=(0, 0), collapse_padding=True)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in next(iter(chosen.values())).memory.kept:
        table.add_row(name, *(f"{line.memory.kept[name] / 1e6:,.1f}" for line in chosen.values()))
    table.add_section()
    for name in next(iter(chosen.values())).memory.passing:
        table.add_row(f"during {name}", *(f"{line.memory.passing[name] / 1e6:,.1f}" for line in chosen.values()))
    table.add_section()
    table.add_row("interpreter and libraries", *(f"{plan.process_bytes / 1e6:,.1f}" for _ in chosen))
    table.add_row("manifest and indexes of the set", *(f"{_set_bytes(plan) / 1e6:,.1f}" for _ in chosen))
    return table


def _set_bytes(plan: Plan) -> int:
    return plan.start.memory_bytes if plan.start is not None else 0


def assumption_lines(plan: Plan) -> list[str]:
    """The assumptions of the plan, and the numbers of workers that are not possible."""
    single = [] if plan.single_s is None else [f"one worker, plain engine, measured: {plan.single_s:.4f} s an update"]
    refused, assumed = (f"refused: {line}" for line in plan.refused), (f"assumed: {line}" for line in plan.assumptions)
    start = [] if plan.start is None else [f"start: {line}" for line in plan.start.sentences()]
    return [*single, *start, *refused, *assumed]
