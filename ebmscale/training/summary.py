"""Facts about a run, which views and watches get instead of the run itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class RunSummary:
    """A run as it is opened.

    Attributes:
        url: of the run.
        samples_seen: at which it starts or resumes.
        max_samples: its budget.
        data: name of the data set.
        counts: number of images by split.
        engine: name of the engine.
        precision: of the computation.
        rank: of this process.
        num_workers: that train it.
        device: of this process.
    """

    url: str
    samples_seen: int
    max_samples: int
    data: str
    counts: Mapping[str, int]
    engine: str
    precision: str
    rank: int
    num_workers: int
    device: torch.device


class Activity(NamedTuple):
    """What a run is doing now.

    Attributes:
        samples_seen: so far.
        part: the part of the update that it works on, and the monotonic time at which it began; None between two parts.
    """

    samples_seen: int
    part: tuple[str, float] | None
