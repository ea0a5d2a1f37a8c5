"""What the traces and logs of all legs together must show: each sample once an epoch, an unbroken stage history."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.chaos.leg import TracedBatch


@dataclass(frozen=True)
class Check:
    """One thing that was verified."""

    name: str
    ok: bool
    detail: str = ""


def surviving(legs: Sequence[Sequence[TracedBatch]]) -> list[TracedBatch]:
    """The batches that the final state holds: of each leg those before the position where the next one resumed."""
    begun = [leg for leg in legs if leg]
    first = [min(batch.start for batch in leg) for leg in begun]
    ends = [*first[1:], None]
    return [batch for leg, end in zip(begun, ends, strict=True) for batch in leg if end is None or batch.start < end]


def check_samples(legs: Sequence[Sequence[TracedBatch]], max_samples: int) -> list[Check]:
    """The batches tile [0, max_samples), and each epoch holds each sample once, over all ranks and legs."""
    kept = surviving(legs)
    by_start: defaultdict[int, list[TracedBatch]] = defaultdict(list)
    for batch in kept:
        by_start[batch.start].append(batch)
    wrong = [start for start, parts in by_start.items() if not _is_whole(parts)]
    spans = sorted((start, parts[0].end) for start, parts in by_start.items())
    gaps = [left[1] for left, right in pairwise(spans) if left[1] != right[0]]
    reach = (spans[0][0], spans[-1][1]) if spans else (0, 0)
    tiles = not gaps and not wrong and reach == (0, max_samples)
    keys = {number: key for batch in kept for number, key in zip(batch.numbers, batch.keys, strict=True)}
    total = sum(len(batch.keys) for batch in kept)
    everything = set(keys.values())
    epochs = [Counter[str]() for _ in range(-(-max_samples // max(1, len(everything))))]
    for number, key in keys.items():
        epochs[number // len(everything)][key] += 1
    whole = epochs[: max_samples // max(1, len(everything))]
    doubled = sum(count > 1 for epoch in epochs for count in epoch.values())
    missing = sum(len(everything) - len(epoch) for epoch in whole)
    changed = _changed(legs)
    return [
        Check(
            "the trained ranges tile the run, every row on one rank",
            tiles,
            f"{len(spans):,} batches, {reach[0]:,} to {reach[1]:,}; gaps at {gaps[:5]}, not whole {wrong[:5]}",
        ),
        Check(
            "each sample once an epoch",
            len(whole) > 0 and doubled == 0 and missing == 0 and total == max_samples,
            f"{len(whole)} whole epochs of {len(everything):,} samples; {doubled} doubled, {missing} missing",
        ),
        Check("a sample's number has one key in all legs", not changed, f"different at {changed[:5]}"),
    ]


def check_logs(
    metrics: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]], every: dict[str, int], max_samples: int
) -> list[Check]:
    """No step of the curves is missing or doubled, and every stage follows from the one before."""
    checks = []
    for name, lines in (("metrics", metrics), ("events", events)):
        found = [line["samples_seen"] for line in lines]
        expected = list(range(every[name], max_samples + 1, every[name]))
        odd = sorted((Counter(found) - Counter(expected)) + (Counter(expected) - Counter(found)))
        checks.append(
            Check(
                f"{name}: one line for every interval",
                found == expected,
                f"{len(found)} lines of {len(expected)}; doubled or missing: {odd[:5]}",
            )
        )
    breaks = [right["samples_seen"] for left, right in pairwise(events) if not _follows(left, right)]
    stages = [event["stage"] for event in events]
    checks.append(
        Check(
            "the stage history is unbroken",
            not breaks and len(set(stages)) > 1,
            f"stages {min(stages, default=0)} to {max(stages, default=0)}; broken at {breaks[:5]}",
        )
    )
    return checks


def _is_whole(parts: list[TracedBatch]) -> bool:
    """Whether these are all ranks' parts of one batch, each once, and their rows are all its rows."""
    size, end, start = parts[0].size, parts[0].end, parts[0].start
    numbers = sorted(number for part in parts for number in part.numbers)
    return (
        sorted(part.rank for part in parts) == list(range(size))
        and all((part.size, part.end) == (size, end) for part in parts)
        and numbers == list(range(start, end))
    )


def _changed(legs: Sequence[Sequence[TracedBatch]]) -> list[int]:
    """Numbers that had different keys when they were trained again."""
    seen: dict[int, str] = {}
    changed = []
    for leg in legs:
        for batch in leg:
            for number, key in zip(batch.numbers, batch.keys, strict=True):
                if seen.setdefault(number, key) != key:
                    changed.append(number)
    return changed


def _follows(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether an event's stage is what the decision of the event before makes it."""
    stage = left["stage"] + (left.get("decision") == "Advance")
    return right["stage"] == stage and right["num_frozen"] == left["num_frozen"] + bool(left.get("freeze"))
