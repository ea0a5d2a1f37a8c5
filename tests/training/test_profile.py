"""`profile=true` writes a trace for Chrome and a table of every part, and does not change training."""

import json
from pathlib import Path

import torch

from ebmscale.config import RunConfig
from ebmscale.model.load import load
from ebmscale.stop import StopSignal
from ebmscale.training.loop import train
from ebmscale.training.profile import TABLE_FILE, TRACE_FILE
from ebmscale.training.view import View
from ebmscale.world import World


def test_a_profile_has_every_part_and_changes_nothing(tiny: RunConfig) -> None:
    block = tiny.train.model_copy(update={"max_samples": 320})
    urls = []
    for profile in (True, False):
        name = tiny.run.model_copy(update={"name": f"profile-{profile}"})
        config = tiny.model_copy(update={"run": name, "profile": profile, "train": block})
        urls.append(train(config, View(quiet=True), World.alone(), StopSignal()))
    one, other = (load(url).networks.state_dict() for url in urls)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not (Path(urls[1]) / "profile").exists()

    events = json.loads((Path(urls[0]) / TRACE_FILE).read_text())["traceEvents"]
    assert {"posterior", "generator", "prior", "ratio"} <= {event.get("name") for event in events}
    rows = [line.split() for line in (Path(urls[0]) / TABLE_FILE).read_text().splitlines()]
    parts = {row[0]: row for row in rows[1:]}
    assert {"posterior", "generator", "prior", "ratio", "update"} <= set(parts)
    # Two hidden layers of 16 on latents of 4; 2 updates of 64 rows: forward, weights' gradient, and features' gradient.
    products = 64 * (4 * 16 + 16 * 16 + 16)
    features = 64 * (16 * 16 + 16)
    assert float(parts["ratio"][3]) * 1e9 == round(2 * 2 * (2 * products + features), -6)
    seconds = [float(row[1]) for row in rows[1:-1]]
    rounding = 0.00005 * len(rows)
    assert float(parts["update"][1]) + rounding >= 0.99 * sum(seconds) > 0
