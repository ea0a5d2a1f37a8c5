"""What a running cluster shows: gauges on Ray's metrics endpoint, and lines of every rank where they are asked for."""

import json
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from ebmscale.runtime.gauges import GAUGES
from tests.runtime.local_cluster import PATIENCE_S, LocalCluster, running, train_command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

PLACES = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print(json.dumps([f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}" for n in ray.nodes() if n["Alive"]]))
"""


def test_gauges_and_all_ranks(pair: LocalCluster, make_config: Callable[..., Path]) -> None:
    with running(pair.command(sys.executable, "-c", PLACES)) as asked:
        assert asked.end() == 0, asked.text
        places = json.loads(asked.lines[-1])
    config = make_config("watched", train={"max_samples": 640_000})
    with running(pair.command(*train_command(config, "ray.num_workers=2", "--all-ranks"))) as run:
        run.wait_for(r"^\[rank 1\] joined on ")
        run.wait_for(r"^\[rank 1\] +\S+ samples  data")
        values = scrape_until_complete(places)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 130, run.text
    assert values["ebmscale_samples_seen"] > 0
    assert values["ebmscale_samples_per_s"] > 0
    assert values["ebmscale_num_workers"] == 2
    assert 0 <= values["ebmscale_data_wait_fraction"] < 1
    assert values["ebmscale_stage"] >= 1
    assert 0 < values["ebmscale_auc"] < 1


def scrape_until_complete(places: list[str]) -> dict[str, float]:
    """The gauges' values, once all are there."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        text = "".join(urllib.request.urlopen(f"{place}/metrics", timeout=30).read().decode() for place in places)
        found = re.findall(r'^ray_(ebmscale_\w+)\{[^}]*run="watched"[^}]*\} (\S+)$', text, re.MULTILINE)
        values = {name: float(value) for name, value in found}
        if values.keys() == GAUGES.keys():
            return values
        assert time.monotonic() < deadline, sorted(GAUGES.keys() - values.keys())
        time.sleep(1)
