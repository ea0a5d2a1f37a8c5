"""Metrics in parts: the values of one process, whoever did the parts."""

import json

import pytest

from ebmscale.errors import ConfigError
from ebmscale.evaluate.features import open_features
from ebmscale.evaluate.metric_parts import MetricJob, Question
from ebmscale.evaluate.metrics import measure_metric
from ebmscale.runtime.part_job import Workers
from ebmscale.runtime.parts import run_parts
from ebmscale.storage import Storage
from tests.evaluate.conftest import HELD_OUT
from tests.program import run_here

LIMITS = {"reconstruction": 1050, "prior": 600, "frechet": 1050, "ceiling": 1050, "latents": 1050, "anomaly": None,
          "baselines": None, "likelihood": 2}  # fmt: skip


@pytest.mark.parametrize("metric", LIMITS)
def test_the_parts_make_the_values_of_the_whole(make_model, digits, classifier_url, tmp_path, metric):
    run = Storage.at(tmp_path / "model")
    make_model(HELD_OUT).export(run)
    features = classifier_url if metric in ("frechet", "ceiling") else None
    split = "test" if metric in ("anomaly", "baselines") else "train"  # the train split has several chunks
    question = Question(run, None, digits, metric, features, split, LIMITS[metric], 3, "cpu")
    prepared = question.prepare()
    job = MetricJob.of(question, prepared)
    assert job.num_parts == {"likelihood": 1, "baselines": 1, "anomaly": 2, "prior": 2}.get(metric, 3)
    run_parts(job, Workers())
    found = job.joined(prepared, 2)
    network = open_features(features) if features else None
    whole = measure_metric(make_model(HELD_OUT), digits, metric, network, split, LIMITS[metric], 3)
    assert found.values == pytest.approx(whole.values, rel=1e-6, abs=1e-6)
    assert found.protocol == whole.protocol | {"num_workers": 2}


def test_the_command_shares_its_work_and_leaves_only_the_record(make_model, digits_url, tmp_path):
    run = tmp_path / "model"
    make_model().export(Storage.at(run))
    done = run_here("evaluate", run, "--metrics", "reconstruction", "--split", "train", "--workers", "2")
    assert done.returncode == 0, done.stderr
    [record] = (run / "evaluation").iterdir()
    assert json.loads(record.read_text())["protocol"]["num_workers"] == 2
    assert "psnr" in done.stdout


def test_parts_of_an_earlier_measurement_are_used_and_those_of_another_refused(make_model, digits, tmp_path):
    run = Storage.at(tmp_path / "model")
    make_model().export(run)
    question = Question(run, None, digits, "reconstruction", None, "train", None, 3, "cpu")
    prepared = question.prepare()
    job = MetricJob.of(question, prepared)
    job.open()(1)
    assert MetricJob.of(question, prepared).done() == {1}
    other = Question(run, None, digits, "reconstruction", None, "train", None, 4, "cpu")
    with pytest.raises(ConfigError, match="its seed is 3, now it is 4"):
        MetricJob.of(other, other.prepare())
