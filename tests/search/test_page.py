"""What a search leaves behind: a page that needs no other file, tables that agree, a configuration to train."""

import contextlib
import csv
import io
import math
import re
from typing import Any

import pytest
import yaml

from ebmscale.config import load_config, parse_config
from ebmscale.errors import ConfigError
from ebmscale.search import evaluation as objective
from ebmscale.search.charts import goodness
from ebmscale.search.files import write_search
from ebmscale.search.importance import comparable, importance
from ebmscale.search.space import EvaluateBlock
from ebmscale.search.trial import Origin, SearchStore
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training.loop import train
from ebmscale.training.view import View
from ebmscale.world import World
from tests.search.conftest import make, record

BOTH = [{"metric": "held_out_mse", "direction": "min"}, {"metric": "auc", "direction": "max"}]


def trials(num: int = 8):
    """Trials whose rate alone matters."""
    found = []
    for n in range(num):
        rate = 10 ** (-4 + 2 * n / (num - 1))
        start = ("base", "encoder")[n % 2]
        values = {"posterior.start": start, "train.ratio.rate": rate} | (
            {"posterior.num_steps": 9} if n % 2 == 0 else {}
        )
        one = record(n, 1.0, rate * 100, values=values)
        one.reports[-1]["auc"] = 0.5 + 0.01 * n
        found.append(one)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    config, space = make(objectives=BOTH)
    records = trials()
    records[3].status, records[3].reason = "failed", "Training diverged: <b>& so on"
    records[4].origins.append(Origin(donor=1, folder="0001", samples_seen=1000))
    store = SearchStore(Storage.at(tmp_path_factory.mktemp("searches") / "digits"))
    write_search(store, config, space, records)
    return store.storage


def test_the_page_needs_no_other_file_and_tells_of_every_trial(written) -> None:
    page = written.read_text("search.html")
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert page.count("<img") == page.count('src="data:image/svg+xml;base64,') >= 5
    assert "Training diverged: &lt;b&gt;&amp; so on" in page
    assert "took over trial 1 at 1,000" in page
    for n in range(8):
        assert f'<td class="n">{n}</td>' in page


def test_the_tables_agree(written) -> None:
    from pyarrow import parquet

    rows = list(csv.DictReader(io.StringIO(written.read_text("trials.csv"))))
    table = parquet.read_table(written.local_path("trials.parquet")).to_pylist()
    assert len(rows) == len(table) == 8
    for row, other in zip(rows, table, strict=True):
        assert row.keys() == other.keys()
        assert {k: "" if v is None else str(v) for k, v in other.items()} == row
    assert table[2]["train.ratio.rate"] == pytest.approx(10 ** (-4 + 4 / 7))
    assert table[1]["posterior.num_steps"] is None


def test_the_best_configuration_can_be_trained(written) -> None:
    found = load_config(written.local_path("best.yaml"))
    assert found.run.name == "digits-best"
    assert found.train.ratio.rate == 1e-4
    assert found.train.max_samples == 9000  # as the space overrides it
    assert "Trial 0" in written.read_text("best.yaml")
    assert yaml.safe_load(written.read_text("best.yaml"))["posterior"]["num_steps"] == 9


def test_a_search_without_a_finished_trial_has_a_page_and_no_best(tmp_path) -> None:
    config, space = make()
    store = SearchStore(Storage.at(tmp_path))
    write_search(store, config, space, [record(0, status="failed", reason="no")])
    assert set(store.storage.list()) == {"search.html", "trials.csv", "trials.parquet"}


def test_what_matters_is_found_to_matter() -> None:
    _, space = make()
    found = importance(space, trials(16))
    assert max(found, key=lambda key: found[key]) == "train.ratio.rate"
    assert sum(found.values()) == pytest.approx(1)
    assert importance(space, trials(4)) == {}


def test_stopped_trials_are_compared_where_all_have_been() -> None:
    _, space = make()
    records = [record(0, 0.5, 0.1), record(1, 0.4, status="stopped"), record(2, 0.9, 0.2), record(3, status="failed")]
    assert comparable(space, records) == (1000, [(records[0], 0.5), (records[1], 0.4), (records[2], 0.9)])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e308])
def test_a_search_with_a_value_to_compute_nothing_with_has_a_page(tmp_path, value: float) -> None:
    config, space = make()
    records = [record(number, 1.0 + number, 0.5 + number) for number in range(7)] + [record(7, value)]
    store = SearchStore(Storage.at(tmp_path))
    write_search(store, config, space, records)
    assert "# Trial 0 of" in (tmp_path / "best.yaml").read_text()


def test_goodness_ranks() -> None:
    assert goodness([3.0, None, 1.0, 2.0], sign=1) == [0.0, None, 1.0, 0.5]
    assert goodness([3.0, None, 1.0, 2.0], sign=-1) == [1.0, None, 0.0, 0.5]


ANOMALY = "evaluate/anomaly/auprc_joint"
OFFICIAL = {"overrides": {"data.held_out": {"label": "1", "protocol": "official"}}}


@pytest.mark.parametrize(
    ("metric", "changes", "words"),
    [
        ("evaluate/frechet/FD", {}, r"give evaluate\.features"),
        ("evaluate/frechet/FD", {"evaluate": {"features": "net"}}, None),
        (ANOMALY, {}, "needs a class that is held out"),
        (ANOMALY, {"overrides": {"data.held_out": {"label": "1", "protocol": "pooled"}}}, "protocol to official"),
        (ANOMALY, OFFICIAL | {"evaluate": {"split": "train"}}, "since train has no anomalies"),
        (ANOMALY, OFFICIAL, None),
    ],
)
def test_what_no_trial_could_be_measured_by_is_refused(metric: str, changes: dict[str, Any], words: str | None) -> None:
    config, space = make(objectives=[{"metric": metric, "direction": "min"}], **changes)
    with pytest.raises(ConfigError, match=words) if words else contextlib.nullcontext():
        objective.check(space, config)


def test_a_finished_run_is_measured_on_validation_anomalies(tiny_text: str) -> None:
    changes = ["train.max_samples=320", "data.held_out={label: 1, protocol: official}"]
    run = train(parse_config(tiny_text, changes), View(quiet=True), World.alone(), StopSignal())
    wanted = ["evaluate/reconstruction/mse", ANOMALY]
    found = objective.measure_run(Storage.at(run), wanted, EvaluateBlock())
    assert list(found) == wanted
    assert found["evaluate/reconstruction/mse"] > 0
    assert 0 < found[ANOMALY] <= 1
