"""Scores for people: percentiles, the score to use first, a comparison with normal images, and the page."""

import csv
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.data.formats import Record, Source
from ebmscale.data.pack import pack
from ebmscale.errors import DataError
from ebmscale.evaluate.anomaly import percentiles
from ebmscale.evaluate.images import open_images
from ebmscale.evaluate.scoring import against_normal, held_out_scores, normal_scores, unlikely_share
from ebmscale.storage import Storage
from ebmscale.world import World

ALONE = World.alone()


def test_percentiles_count_lower_scores_and_ties_half():
    reference = torch.tensor([4.0, 1.0, 2.0, 2.0])
    assert percentiles(torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]), reference).tolist() == [0, 12.5, 50, 75, 100]
    assert unlikely_share(torch.tensor([0.0, 9.0]), reference) == 0.5


def test_detection_takes_the_new_images_as_anomalies():
    found = against_normal({"a": torch.tensor([2.0, 3.0])}, {"a": torch.tensor([0.0, 1.0, 2.5])})
    assert found["auroc_a"] == pytest.approx(5 / 6)
    assert (found["num_anomalies"], found["num_normal"]) == (2, 3)


def test_normal_images_of_the_run_s_own_set_are_held_out(make_model, digits, tmp_path):
    model = make_model()
    own = normal_scores(model, digits, 0, ALONE)["ratio"]
    assert len(own) == len(open_images(model, digits, "validation", ALONE)) < 500
    torch.testing.assert_close(own, held_out_scores(model, 0, ALONE))
    noise(tmp_path / "noise")
    assert len(normal_scores(model, Storage.at(tmp_path / "noise"), 0, ALONE)["joint"]) == 30
    with pytest.raises(DataError, match="does not exist"):
        normal_scores(model, Storage.at(tmp_path / "none"), 0, ALONE)


def noise(folder):
    """A packed set of 30 images of noise."""

    def records():
        for number in range(30):
            image = np.random.default_rng(number).integers(0, 256, (1, 8, 8), np.uint8)
            yield Record(f"noise-{number:02d}", image, -1, "train")

    pack(Source("noise", "toy", (1, 8, 8), "uint8", [], {"train": 30}, records), Storage.at(folder))


def test_the_command_writes_scores_a_page_and_says_what_they_mean(make_model, digits_url, tmp_path):
    make_model().export(Storage.at(tmp_path / "model"))
    noise(tmp_path / "new")
    out = tmp_path / "scores.csv"
    arguments = ["score", str(tmp_path / "model"), str(tmp_path / "new"), "--out", str(out), "--against", digits_url]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "score    ratio: the higher, the less likely" in done.output
    assert re.search(r"unlikely [\d.]+% of the images are above the 99th percentile", done.output)
    assert re.search(r"joint +AUROC [\d.]+, AUPRC [\d.]+", done.output)
    assert "detection: The score" in done.output
    rows = list(csv.DictReader(out.open()))
    assert list(rows[0])[:4] == ["key", "label", "percentile", "ratio"]
    assert len(rows) == 30
    page = (tmp_path / "scores.html").read_text()
    assert f"page     {tmp_path / 'scores.html'}" in done.output
    assert "The 20 least likely" in page
    assert "The 20 most likely" in page
    shown = re.findall(r'<p class="note">(noise-\d+)</p>', page)
    by_score = [row["key"] for row in sorted(rows, key=lambda row: float(row["ratio"]))]
    assert shown == [*by_score[::-1][:20], *by_score[:20]]


def test_without_the_run_s_images_there_are_no_percentiles(make_model, tmp_path):
    model = make_model(f"data.url={tmp_path / 'gone'}")
    model.export(Storage.at(tmp_path / "model"))
    noise(tmp_path / "new")
    out = tmp_path / "scores.csv"
    done = CliRunner().invoke(cli, ["score", str(tmp_path / "model"), str(tmp_path / "new"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "no percentiles, as the run's own images cannot be read" in done.output
    assert out.read_text().startswith("key,label,ratio,joint,")
    assert "There are no percentiles" in (tmp_path / "scores.html").read_text()
