"""A campaign's result as a table, as Markdown and as JSON."""

import json
from dataclasses import asdict
from statistics import mean
from typing import Any

from tests.chaos.campaign import Result


def rows(result: Result) -> list[dict[str, Any]]:
    """One row for each kind of fault."""
    kinds = dict.fromkeys(fault.kind for fault in result.faults)
    found = []
    for kind in sorted(kinds):
        faults = [fault for fault in result.faults if fault.kind == kind]
        repeated = [fault.repeated for fault in faults]
        survived = sum(fault.survived is True for fault in faults)
        found.append(
            {"fault": kind, "injected": len(faults), "survived": survived}
            | {"repeated_mean": round(mean(repeated), 1), "repeated_max": max(repeated)}
        )
    return found


def to_json(result: Result) -> str:
    """Everything."""
    plan = asdict(result.plan) | {"topologies": [str(topology) for topology in result.plan.topologies]}
    tree = {
        "ok": result.ok,
        "plan": plan,
        "figures": result.figures,
        "table": rows(result),
        "checks": [asdict(check) for check in result.checks],
        "faults": [asdict(fault) for fault in result.faults],
    }
    return json.dumps(tree, indent=1)


def to_markdown(result: Result) -> str:
    """The table, the checks, and what went wrong."""
    table = rows(result)
    total = {name: sum(row[name] for row in table) for name in ("injected", "survived")}
    where = ", ".join(map(str, result.plan.topologies))
    lines = [
        f"{total['injected']} faults over one run of {result.figures.get('samples', 0):,} samples "
        f"(seed {result.plan.seed}; {where}), {result.figures.get('seconds', 0):.0f} s, "
        f"{result.figures.get('starts', 0)} starts.",
        "",
        "| fault | times injected | times survived | updates repeated, mean | max |",
        "|---|---:|---:|---:|---:|",
        *(
            "| {fault} | {injected} | {survived} | {repeated_mean:.1f} | {repeated_max:.0f} |".format(**row)
            for row in table
        ),
        f"| all | {total['injected']} | {total['survived']} | | |",
        "",
        *(f"- {'yes' if check.ok else 'NO'}: {check.name} ({check.detail})" for check in result.checks),
        *(
            f"- NOT SURVIVED: {fault.kind} at {fault.position:,}, {fault.topology}: {fault.note}"
            for fault in result.faults
            if not fault.survived
        ),
    ]
    return "\n".join(lines) + "\n"
