import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml

from ebmscale.config import RunConfig, load_config
from ebmscale.search.check import base_config
from ebmscale.search.space import Space, parse_space
from ebmscale.search.trial import SearchStore, TrialRecord
from ebmscale.storage import Storage

ROOT = Path(__file__).parents[2]
DIGITS = load_config(
    ROOT / "configs" / "digits.yaml",
    ["posterior.start=base", "posterior.num_steps=20", "prior.base=standard", "stages.start_samples=0"],
)
TEXT = """
num_trials: 10
overrides: {train.max_samples: 9000}
objectives: [{metric: held_out_mse, direction: min}]
space:
  posterior.start: {choice: [base, encoder]}
  posterior.num_steps: {int: [5, 40], when: {posterior.start: base}}
  train.ratio.rate: {loguniform: [1.0e-4, 1.0e-2]}
"""
POPULATION = {
    "scheduler": "pbt",
    "pbt": {"every_samples": 2500},
    "space": {"train.ratio.rate": {"loguniform": [1e-4, 1e-2]}, "stages.updates_per_batch": {"choice": [2, 6, 8]}},
}


def make(**changes: Any) -> tuple[RunConfig, Space]:
    """A configuration and a space of it."""
    space = parse_space(yaml.safe_load(TEXT) | changes)
    return base_config(DIGITS, space), space


def record(number: int, *values: float, **changes: Any) -> TrialRecord:
    """A finished trial that reported these values of the objective, each after another 1,000 samples."""
    reports = [{"samples_seen": 1000.0 * (i + 1), "held_out_mse": value} for i, value in enumerate(values)]
    fields = {"values": {"posterior.start": "encoder", "train.ratio.rate": 1e-3}, "status": "finished"} | changes
    return TrialRecord(number=number, reports=reports, **fields)


@pytest.fixture
def store() -> SearchStore:
    return SearchStore(Storage.at(f"memory://searches/{uuid.uuid4().hex}"))
