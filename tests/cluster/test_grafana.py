"""The Grafana dashboard shows what the code exports, all of it and nothing else."""

import json
import re

from ebmscale.runtime.gauges import GAUGES
from tests.cluster.manifests import CLUSTER

DASHBOARD = json.loads((CLUSTER / "grafana.json").read_text())


def test_every_exported_metric_is_shown_under_the_name_that_prometheus_sees() -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    shown = {name for expression in expressions for name in re.findall(r"\bray_(\w+)\{", expression)}
    assert shown == set(GAUGES)
    assert "ray_ebmscale_samples_seen" in DASHBOARD["templating"]["list"][1]["definition"]


def test_panels_fill_the_grid_without_covering_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not taken & cells
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_every_panel_names_its_source_and_its_runs() -> None:
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all('{run=~"$run"}' in target["expr"] for target in panel["targets"])
        assert panel["description"]
