"""Metrics of a model on the digits: against direct computation, on several workers, and as commands."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import OneClassSVM
from torchmetrics.image.fid import FrechetInceptionDistance

from ebmscale.cli import cli
from ebmscale.data.chunks import read_split
from ebmscale.data.formats import Record, Source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.density import smc
from ebmscale.density.bases import MomentBase
from ebmscale.errors import ConfigError, DataError, DivergenceError
from ebmscale.evaluate import fidelity
from ebmscale.evaluate.features import Features, open_features
from ebmscale.evaluate.fidelity import psnr
from ebmscale.evaluate.images import chunk_seed, open_all_images, open_images
from ebmscale.evaluate.metrics import evaluate, measure_metric
from ebmscale.evaluate.score_file import write_scores
from ebmscale.evaluate.scoring import held_out_scores
from ebmscale.model.pixels import to_images, to_pixels
from ebmscale.seeds import derive
from ebmscale.storage import Storage
from ebmscale.world import World
from tests.conftest import PATIENCE_S
from tests.evaluate.conftest import HELD_OUT
from tests.ports import free_port
from tests.program import run_here

ALONE = World.alone()
PIXELS = Features("FD-pixels", 64, "0" * 64, None, lambda images: images.flatten(1).float())


def test_psnr_of_known_errors():
    """An error of the whole range at every pixel is 0 dB, a tenth of the range is 20 dB, no error is 100 dB."""
    assert psnr(torch.tensor([4.0, 0.04, 0.0], dtype=torch.float64)).tolist() == pytest.approx(
        [0.0, 20.0, 100.0], abs=1e-9
    )


def test_reconstruction_is_what_it_says(make_model, digits):
    model = make_model()
    found = measure_metric(model, digits, "reconstruction", split="validation", seed=3)
    images = torch.cat([chunk.images for chunk in open_images(model, digits, "validation", ALONE).chunks()])
    assert len(images) < 500  # one chunk
    x = to_pixels(images)
    error = (model.reconstruct(x, chunk_seed(3, 0)) - x).double().square().mean((1, 2, 3))
    assert found.values["mse"] == pytest.approx(float(error.mean()), rel=1e-6)
    unit = ((x + 1) / 2 - (model.reconstruct(x, chunk_seed(3, 0)) + 1) / 2).double().square().mean()
    assert found.values["mse_unit"] == pytest.approx(float(unit), rel=1e-6)
    assert found.values["psnr"] == pytest.approx(float((-10 * torch.log10(error / 4)).mean()), rel=1e-6)
    assert found.protocol["num_images"] == len(images)


def torchmetrics_distance(real, fake):
    """The Frechet distance of the pixels of images (N, 1, 8, 8)."""
    oracle = FrechetInceptionDistance(torch.nn.Flatten(), input_img_size=(1, 8, 8)).set_dtype(torch.float64)
    oracle.update(real.float(), real=True)
    oracle.update(fake.float(), real=False)
    return float(oracle.compute())


def test_frechet_distance_of_samples_agrees_with_torchmetrics(make_model, digits, monkeypatch):
    monkeypatch.setattr(fidelity, "SAMPLES_AT_ONCE", 50)
    model = make_model()
    found = measure_metric(model, digits, "frechet", PIXELS, "validation", num_samples=120, seed=2)
    drawn = [model.sample_prior(num, derive(2, "evaluate-samples", i)) for i, num in enumerate((50, 50, 20))]
    fake = to_images(model.decode(torch.cat(drawn)))
    real = torch.cat([chunk.images for chunk in open_images(model, digits, "validation", ALONE, 120).chunks()])
    assert found.values["FD-pixels"] == pytest.approx(torchmetrics_distance(real, fake), rel=1e-6)
    assert found.protocol["num_generated"] == found.protocol["num_images"] == 120


def test_the_ceiling_is_the_distance_of_decoded_posteriors_of_training_images(make_model, digits):
    model = make_model()
    found = measure_metric(model, digits, "ceiling", PIXELS, "validation", num_samples=1500, seed=2)
    training, parts = open_images(model, digits, "train", ALONE, 1500), []
    assert len(training) < 1500  # so the first ones are drawn twice
    for first in (0, len(training)):
        for chunk in training.chunks():
            seed = chunk_seed(derive(2, "ceiling", first), chunk.index)
            parts.append(to_images(model.reconstruct(to_pixels(chunk.images[: 1500 - sum(map(len, parts))]), seed)))
            if sum(map(len, parts)) == 1500:
                break
    real = torch.cat([chunk.images for chunk in open_images(model, digits, "validation", ALONE).chunks()])
    assert sum(map(len, parts)) == 1500
    wanted = torchmetrics_distance(real, torch.cat(parts))
    assert found.values["ceiling_FD-pixels"] == pytest.approx(wanted, rel=1e-6)
    assert set(found.values) >= {"ceiling_KD-pixels", "ceiling_precision", "ceiling_coverage"}
    assert found.protocol["num_generated"] == 1500


def test_nats_of_a_prior_that_cannot_be_normalised_are_not_a_number(make_model, digits, monkeypatch):
    model = make_model()
    wide = {name: 30 * value for name, value in model.prior.stage_weights(1).items()}
    monkeypatch.setattr(smc, "MAX_RUNGS", 3)
    prior = model.prior.prefix(0).append(wide)
    values = measure_metric(replace(model, prior=prior), digits, "latents", num_samples=60).values
    assert math.isnan(values["nats"])
    assert math.isfinite(values["nats_base"])


def test_nats_of_latents_are_those_of_a_known_density(make_model, digits):
    """Ratios that are 0 leave p_0, and one that adds a constant to log p changes log Z alone."""
    model = make_model()
    nothing = model.prior.network.state_dict()  # a new network is the zero function
    constant = nothing | {list(nothing)[-1]: torch.full((1,), 2.0)}
    z = torch.cat(
        [
            model.encode(to_pixels(chunk.images), chunk_seed(4, chunk.index))
            for chunk in open_images(model, digits, "validation", ALONE, 60).chunks()
        ]
    )
    wanted = float((-0.5 * z.double().square().sum(1)).mean()) - 2 * math.log(2 * math.pi)
    for weights, is_zero in ((nothing, True), (constant, False)):
        prior = model.prior.prefix(0).append(weights)
        values = measure_metric(replace(model, prior=prior), digits, "latents", num_samples=60, seed=4).values
        ratio = float(prior.log_ratios(z)[0, 0])
        assert (ratio == 0) == is_zero
        assert values["log_z"] == pytest.approx(ratio, abs=1e-5)
        assert values["nats"] == pytest.approx(wanted, abs=0.02)
        assert values["nats_base"] == pytest.approx(wanted, abs=0.02)
    broken = model.prior.prefix(0).append({name: torch.full_like(w, math.nan) for name, w in nothing.items()})
    values = measure_metric(replace(model, prior=broken), digits, "latents", num_samples=60).values
    assert math.isnan(values["nats"])
    assert math.isfinite(values["nats_base"])


def test_anomalies_are_the_class_that_was_held_out(make_model, digits):
    model = make_model(HELD_OUT)
    found = measure_metric(model, digits, "anomaly", seed=5)
    joint, labels = [], []
    for chunk in open_images(model, digits, "test", ALONE, with_anomalies=True).chunks():
        joint.append(model.score(to_pixels(chunk.images), chunk_seed(5, chunk.index)).joint)
        labels.append(chunk.labels)
    expected = average_precision_score(torch.cat(labels) == 1, torch.cat(joint))
    assert found.values["auprc_joint"] == pytest.approx(expected, abs=1e-6)
    assert set(found.values) >= {"auprc_prior", "auroc_prior", "auprc_reconstruction", "auroc_joint"}
    assert found.values["num_anomalies"] == 182  # all anomalies of the set
    assert found.protocol["held_out"] == {"label": "1", "protocol": "pooled"}
    assert found.protocol["chance_auprc"] == 182 / found.protocol["num_images"]


def test_baselines_are_fitted_to_the_training_images_and_scored_on_the_same_images(make_model, digits):
    """Against scikit-learn's own detectors on arrays that are read here."""
    model = make_model(HELD_OUT)
    found = measure_metric(model, digits, "baselines", seed=5)
    assert found.values["num_anomalies"] == 182
    assert found.protocol["chance_auprc"] == found.values["prevalence"]
    names = {f"{where}_{what}" for where in ("pixels", "latents") for what in ("knn", "forest", "svm")} | {"pixels_pca"}
    assert {name.removeprefix("auprc_") for name in found.values if name.startswith("auprc_")} == names
    sets = [open_images(model, digits, "train", ALONE), open_images(model, digits, "test", ALONE, with_anomalies=True)]
    images = [torch.cat([to_pixels(one.images) for one in of.chunks()]).flatten(1) for of in sets]
    labels = [torch.cat([one.labels for one in of.chunks()]) for of in sets]
    assert 1 not in labels[0]
    distances = NearestNeighbors(n_neighbors=5).fit(images[0]).kneighbors(images[1])[0].mean(1)
    assert found.values["auprc_pixels_knn"] == pytest.approx(average_precision_score(labels[1] == 1, distances), 1e-4)
    machine = OneClassSVM(nu=0.1).fit(images[0])
    expected = average_precision_score(labels[1] == 1, -machine.score_samples(images[1]))
    assert found.values["auprc_pixels_svm"] == pytest.approx(expected, abs=2e-3)  # its rows come in another order
    with pytest.raises(ConfigError, match="trained on every class"):
        measure_metric(make_model(), digits, "baselines", split="validation")


def test_the_ratio_score_compares_with_a_gaussian_twice_as_wide(make_model):
    """Of p_0 = N(0, I), and of a fitted base: one without a mixture is 2 times narrower in every direction."""
    model, x = make_model(), to_pixels(torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8))
    z, _ = model.infer(x, at_mean=True)
    wanted = model.prior.energy(z) - z.square().sum(1) / 8
    torch.testing.assert_close(model.score(x).ratio, wanted, rtol=1e-4, atol=1e-4)
    base = MomentBase(torch.ones(4), 3 * torch.eye(4))
    fitted = replace(model, prior=model.prior.prefix(0).on_base(base))
    z, _ = fitted.infer(x, at_mean=True)
    constant = 4 * (math.log(3) + 0.5 * math.log(2 * math.pi))
    wanted = constant + (0.5 - 0.125) * ((z - 1) / 3).square().sum(1)
    torch.testing.assert_close(fitted.score(x).ratio, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "of_chains"), [("density", []), ("persistent", ["chains"])])
def test_the_prior_is_compared_with_the_posteriors_stage_by_stage(make_model, digits, kind, of_chains):
    model = make_model(f"prior.kind={kind}")
    found = measure_metric(model, digits, "prior", num_samples=60, seed=2)
    assert {"gap_p0", "gap_p1", "gap_p2", "gap_p2_error", "log_z", "log_z_bridge"} <= set(found.values)
    assert ("r_hat" in found.values) == bool(of_chains)
    z = torch.cat(
        [
            model.infer(to_pixels(chunk.images), chunk_seed(2, chunk.index))[0]
            for chunk in open_images(model, digits, "validation", ALONE, 60).chunks()
        ]
    )
    drawn = model.sample_prior(60, derive(2, "prior-fit"))
    gap = model.log_prior(z).mean() - model.log_prior(drawn).mean()
    assert found.values["gap_p2"] == pytest.approx(float(gap), abs=1e-4)
    assert [verdict.topic for verdict in found.verdicts()] == ["prior", *of_chains, "log Z"]


def test_a_prior_that_is_wide_or_has_diverged_is_measured_in_short_time(make_model, digits):
    model = make_model()
    for factor, grades in ((30.0, ["unclear"]), (math.nan, [])):
        prior = model.prior.prefix(0)
        for stage in (1, 2):
            prior = prior.append({name: factor * w for name, w in model.prior.stage_weights(stage).items()})
        found = measure_metric(replace(model, prior=prior), digits, "prior", num_samples=20)
        assert "log_z" not in found.values
        assert [verdict.grade for verdict in found.verdicts() if verdict.topic == "log Z"] == grades
        assert found.verdicts()[0].grade == "bad"


def test_other_metrics_leave_the_anomalies_out(make_model, digits):
    model = make_model(HELD_OUT)
    labels = torch.cat([chunk.labels for chunk in open_images(model, digits, "test", ALONE).chunks()])
    assert 1 not in labels
    block = model.config.data
    _, tested, _ = read_split(digits, Manifest.load(digits), "test", None, block.validation_fraction, block.held_out)
    assert len(labels) == int((tested != 1).sum())


def test_without_a_test_part_the_validation_part_is_measured(make_model, digits):
    found = measure_metric(make_model(), digits, "reconstruction", num_samples=9)
    assert found.protocol["split"] == "validation"
    pooled = measure_metric(make_model(HELD_OUT), digits, "reconstruction", num_samples=9)
    assert pooled.protocol["split"] == "test"


def test_one_table_of_several_metrics(make_model, digits):
    model = make_model(HELD_OUT)
    table = evaluate(model, digits, ["reconstruction", "frechet", "anomaly"], features=PIXELS, num_samples=100)
    assert set(table) >= {
        "mse",
        "psnr",
        "FD-pixels",
        "KD-pixels",
        "KD-pixels_error",
        "precision",
        "recall",
        "density",
        "coverage",
        "auprc_joint",
    }
    assert all(np.isfinite(value) for value in table.values())


def test_the_command_takes_several_features_and_numbers_of_images_by_metric(make_model, classifier_url, tmp_path):
    model, copied = tmp_path / "model", tmp_path / "other"
    make_model().export(Storage.at(model))
    shutil.copytree(classifier_url, copied)
    about = json.loads((copied / "feature_net.json").read_text())
    (copied / "feature_net.json").write_text(json.dumps(about | {"name": "other"}))
    asked = ["evaluate", model, "--metrics", "frechet,latents,reconstruction", "--num-samples", "60,latents=20"]
    done = run_here(*asked, "--features", classifier_url, "--features", copied)
    assert done.returncode == 0, done.stderr
    records = [json.loads(file.read_text()) for file in (model / "evaluation").iterdir()]
    found = {(one["metric"], one["protocol"].get("features")): one for one in records}
    names = ("FD-digits-classifier", "FD-other")
    assert set(found) == {*(("frechet", name) for name in names), ("latents", None), ("reconstruction", None)}
    assert [found["frechet", name]["values"][name] > 0 for name in names] == [True, True]
    assert found["latents", None]["protocol"]["num_images"] == 20
    assert found["reconstruction", None]["protocol"]["num_images"] == 60
    for wrong, said in (
        ("many", "whole number above 0"),
        ("0", "whole number above 0"),
        ("latents=", "whole number above 0"),
        ("beauty=3", "no metric 'beauty'"),
        ("latents=5", "latents=5 is for a metric that --metrics does not name"),
        ("prior=5,prior=6", "two numbers for prior"),
        ("5,6", "two numbers for all metrics"),
    ):
        refused = CliRunner().invoke(cli, ["evaluate", str(model), "--num-samples", wrong])
        assert said in f"{refused.output} {refused.exception}"


def test_what_cannot_be_measured_gets_a_sentence(make_model, digits, tmp_path):
    model = make_model()
    with pytest.raises(ConfigError, match=r"trained on every class.*data\.held_out\.label=CLASS"):
        measure_metric(model, digits, "anomaly", split="validation")
    with pytest.raises(DataError, match="digits has no test part"):
        measure_metric(model, digits, "reconstruction", split="test")
    with pytest.raises(ConfigError, match="no metric 'fid'; choose from reconstruction, prior, frechet"):
        measure_metric(model, digits, "fid")
    with pytest.raises(ConfigError, match="needs features"):
        measure_metric(model, digits, "frechet", split="validation")
    with pytest.raises(DataError, match="0 of the 72 images are anomalies"):
        measure_metric(make_model(HELD_OUT), digits, "anomaly", split="validation", num_samples=72)
    with pytest.raises(DataError, match="does not exist"):
        measure_metric(model, Storage.at(tmp_path / "nothing"), "reconstruction")
    model.networks.generator.get_parameter(_first_name(model)).fill_(torch.nan)
    with pytest.raises(DivergenceError, match="not finite"):
        measure_metric(model, digits, "reconstruction", split="validation")


def _first_name(model):
    return next(iter(dict(model.networks.generator.named_parameters())))


@pytest.mark.parametrize(
    ("shape", "label", "words"),
    [
        ((1, 9, 8), 0, r"shape \(1, 9, 8\), and the model takes uint8 images of shape \(1, 8, 8\)"),
        ((1, 8, 8), -1, "3 samples of odd have no label, so its class '1' cannot be held out"),
    ],
)
def test_a_set_that_does_not_fit_gets_a_sentence(make_model, tmp_path, shape, label, words):
    records = [Record(f"a-{i}", np.zeros(shape, np.uint8), label, "test") for i in range(3)]
    source = Source("odd", "toy", shape, "uint8", ["0", "1"], {"test": 3}, lambda: iter(records))
    storage = Storage.at(tmp_path)
    pack(source, storage)
    with pytest.raises(DataError, match=words):
        measure_metric(make_model(HELD_OUT), storage, "anomaly")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_of_scores_has_a_row_for_every_image(make_model, digits, tmp_path, ending):
    model, out = make_model(), str(tmp_path / "deep" / f"scores.{ending}")
    images = open_all_images(model, digits, ALONE)
    assert len(write_scores(model, images, out, seed=1)["joint"]) == len(images) == 1797
    if ending == "csv":
        with open(out) as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pq.read_table(out).to_pylist()
    assert [row["key"] for row in rows] == images.selection.find().texts()
    assert [int(row["label"]) for row in rows] == images.selection.find().labels.tolist()
    chunk = next(iter(images.chunks()))
    expected = model.score(to_pixels(chunk.images), chunk_seed(1, 0))
    for part, values in expected._asdict().items():
        assert [float(row[part]) for row in rows[:500]] == pytest.approx(values.tolist(), rel=1e-6)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [f"scores.{ending}"]


def test_scores_go_to_an_address_too(make_model, digits):
    model = make_model()
    out = "memory://scores/of.csv"
    write_scores(model, open_all_images(model, digits, ALONE), out, seed=1)
    assert (
        Storage.at("memory://scores")
        .read_text("of.csv")
        .startswith("key,label,ratio,joint,reconstruction,prior,balanced")
    )
    with pytest.raises(ConfigError, match=r"must end in \.parquet or \.csv"):
        write_scores(model, open_all_images(model, digits, ALONE), "scores.txt", seed=1)


COMMANDS = """
import sys
from ebmscale.cli import cli
model, data, features, out = sys.argv[1:]
cli(["evaluate", model, "--metrics", "reconstruction,frechet,anomaly", "--features", features, "--num-samples", "1100"],
    standalone_mode=False)
cli(["score", model, data, "--out", out], standalone_mode=False)
"""


def _on_two_ranks(*arguments):
    """What rank 0 prints of the commands above, which two processes run together."""
    port = free_port()
    common = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "COLUMNS": "200"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", COMMANDS, *arguments],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [rank.communicate(timeout=PATIENCE_S) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], found
    assert found[1][0] == ""
    return found[0][0]


def test_two_workers_give_the_numbers_of_one(make_model, digits, digits_url, classifier_url, tmp_path):
    """The commands on two processes against the functions on one; both ranks have chunks of images and of samples."""
    model = make_model(HELD_OUT)
    model.export(Storage.at(tmp_path / "model"))
    printed = _on_two_ranks(str(tmp_path / "model"), digits_url, classifier_url, str(tmp_path / "two.csv"))
    assert "auprc_joint" in printed
    assert "1,797 images scored" in printed
    features = open_features(classifier_url)
    for metric in ("reconstruction", "frechet", "anomaly"):
        alone = measure_metric(model, digits, metric, features, num_samples=1100)
        record = json.loads((tmp_path / "model" / alone.file).read_text())
        assert record["values"] == pytest.approx(alone.values, rel=1e-9)
        assert record["protocol"] == alone.protocol | {"num_workers": 2}
        assert record["samples_seen"] == 640
    images, reference = open_all_images(model, digits, ALONE), held_out_scores(model, 0, ALONE)
    write_scores(model, images, str(tmp_path / "one.csv"), 0, reference)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    frechet = json.loads(
        (tmp_path / "model/evaluation/frechet-FD-digits-classifier-test-stage2-000000000640.json").read_text()
    )
    assert frechet["protocol"]["features_sha256"] == features.sha256
