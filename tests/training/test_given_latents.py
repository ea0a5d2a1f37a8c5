"""Latents that are given as data: packed, trained on, stopped, resumed, measured, and brought back."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import ebmscale
from ebmscale.config import RunConfig, parse_config
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import ConfigError, DataError
from ebmscale.evaluate.metrics import evaluate, measure_metric
from ebmscale.model.run_folder import run_storage
from ebmscale.storage import Storage
from tests.training.test_resume import final_files, history, run_until

ZEROS = np.zeros((9, 3), "f4")
SHIFT, SCALE = torch.tensor([5.0, -40.0, 0.0]), torch.tensor([2.0, 0.1, 30.0])
TINY = """
run: {name: given, seed: 1}
data: {url: DATA, num_streams: 4, shuffle_window: 16, validation_fraction: 0.2}
model: {generator: {form: identity}, ratio: {hidden: [16]}}
posterior: {start: encoder, num_steps: 0}
prior: {num_particles: 512}
stages:
  {max_stages: 2, updates_per_batch: 2, batch_size: 64, buffer_samples: 512, min_samples: 640, max_samples: 1280,
   settle_samples: 320, evidence_every: 320, evidence_samples: 128, significance: 0.01}
train: {batch_size: 64, max_samples: 3200, ratio: {rate: 3.0e-3}}
checkpoint: {every_samples: 1600}
metrics: {every_samples: 640, tensorboard: false}
"""


def two_clusters(num: int, seed: int = 0) -> torch.Tensor:
    """Latents (N, 3) of two clusters, in coordinates of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    side = (torch.rand(num, 1, generator=generator) < 0.5).float() * 2 - 1
    return SHIFT + SCALE * (side * 1.5 + 0.5 * torch.randn(num, 3, generator=generator))


def packed(folder: Path, **arrays: np.ndarray) -> Storage:
    np.savez(folder / "latents.npz", **arrays)
    storage = Storage.at(folder / "set")
    pack(open_source("npy", str(folder / "latents.npz")), storage)
    return storage


def config_of(data: Storage, folder: Path, *overrides: str) -> RunConfig:
    text = TINY.replace("DATA", str(data.url)) + f"storage: {{url: {folder / 'runs'}}}\n"
    return parse_config(text, overrides)


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Storage:
    x = two_clusters(1000).numpy()
    return packed(tmp_path_factory.mktemp("points"), train_latents=x[:800], test_latents=x[800:])


@pytest.fixture(scope="module")
def posteriors(tmp_path_factory) -> Storage:
    x = two_clusters(800).numpy()
    return packed(tmp_path_factory.mktemp("posteriors"), mean=x, std=np.broadcast_to(0.2 * SCALE.numpy(), x.shape))


@pytest.fixture(scope="module")
def trained(points, tmp_path_factory) -> ebmscale.LatentModel:
    config = config_of(points, tmp_path_factory.mktemp("trained"), "prior.num_particles=4096")
    run_until(config)
    return ebmscale.load(str(run_storage(config).url))


@pytest.mark.parametrize("kind", ["points", "posteriors"])
def test_two_interruptions_change_nothing(kind, request, tmp_path):
    data = request.getfixturevalue(kind)
    whole, parts = (config_of(data, tmp_path / name) for name in ("whole", "parts"))
    run_until(whole)
    for stop in (960, 2000, None):
        run_until(parts, stop)
    assert final_files(parts) == final_files(whole)
    assert history(parts, "events.jsonl") == history(whole, "events.jsonl")


def test_the_size_of_latents_is_that_of_the_data(trained):
    assert trained.config.model.latent_dim == 3
    assert trained.sample_shape == (3,)


def test_samples_are_in_the_coordinates_of_the_data(trained):
    x = trained.sample(2000)
    assert x.shape == (2000, 3)
    assert torch.allclose(x.mean(0), SHIFT, atol=0.25 * float(SCALE.max()))
    assert torch.allclose(x.std(0) / SCALE, torch.full((3,), math.sqrt(1.5**2 + 0.5**2)), rtol=0.25)
    assert torch.allclose(trained.decode(trained.encode(x)), x, rtol=1e-4, atol=1e-4)


def test_the_density_of_the_base_is_the_gaussian_of_the_moments_of_the_training_part(trained, points):
    rows = torch.from_numpy(np.stack(train_rows(points))).double()
    mean, std = rows.mean(0), rows.std(0, correction=0)
    x = two_clusters(50, seed=7)
    expected = torch.distributions.Normal(mean, std).log_prob(x.double()).sum(1)
    base = trained.at_stage(0)
    assert torch.allclose(base.log_density(x, base.log_normaliser()).double(), expected, atol=1e-4)


def train_rows(points: Storage) -> list[np.ndarray]:
    from ebmscale.data.chunks import read_samples
    from ebmscale.data.split import select

    manifest = Manifest.load(points)
    return list(read_samples(points, manifest, select(manifest, "train", 0.2).find()).numpy())


def test_likelihood_prior_distance_and_scores_are_measured_without_features(trained, points):
    found = evaluate(trained, points, ["likelihood", "prior", "frechet"], num_samples=200)
    assert found["log_likelihood"] > found["log_likelihood_base"]
    assert "FD-latents" in found
    assert "gap_p0" in found
    with pytest.raises(ConfigError, match="nothing to reconstruct"):
        measure_metric(trained, points, "reconstruction")
    scores = trained.score(two_clusters(20))
    assert torch.equal(scores.joint, scores.prior)
    far = trained.score(SHIFT + SCALE * torch.tensor([[6.0, -6.0, 6.0]]))
    assert float(far.prior) > float(scores.prior.max())


def test_an_export_of_given_latents_opens_and_gives_the_same(trained, tmp_path):
    trained.export(Storage.at(tmp_path / "export"))
    assert torch.equal(ebmscale.load(str(tmp_path / "export")).sample(5), trained.sample(5))


def test_posteriors_are_drawn_from_and_their_spread_counts(posteriors, tmp_path):
    config = config_of(posteriors, tmp_path, "train.max_samples=640")
    run_until(config)
    model = ebmscale.load(str(run_storage(config).url))
    x = torch.stack([two_clusters(4), (0.2 * SCALE).expand(4, 3)], 1)
    draws = torch.stack([model.encode(x, seed) for seed in range(200)])
    mean, std = model.posterior(x)
    assert torch.allclose(draws.mean(0), mean, atol=0.1)
    assert torch.allclose(draws.std(0), std, rtol=0.3)
    assert torch.equal(model.encode(x[:, 0]), model.encode(x[:, 0], seed=1))  # points have no spread


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"mean": ZEROS}, "has mean of part train and no std"),
        ({"std": ZEROS}, "has std of part train and no mean"),
        ({"mean": ZEROS, "std": np.zeros((9, 4), "f4")}, "give both for each of N latents"),
        ({"mean": np.zeros((9, 3), "i4"), "std": ZEROS}, "convert them to float32"),
        ({"train_mean": ZEROS, "train_std": ZEROS, "test_mean": ZEROS}, "of part test and no std"),
    ],
)  # fmt: skip
def test_half_a_posterior_is_refused(arrays, says, tmp_path):
    with pytest.raises(DataError, match=says):
        packed(tmp_path, **arrays)
    assert not (tmp_path / "set" / "manifest.json").exists()


@pytest.mark.parametrize("beside", ["x_train", "images", "latents"])
def test_moments_beside_arrays_that_are_called_samples_are_statistics(beside, tmp_path):
    samples = two_clusters(20).numpy()
    data = packed(tmp_path, **{beside: samples}, mean=samples.mean(0), std=samples.std(0), class_mean=samples[:2])
    manifest = Manifest.load(data)
    assert (manifest.encoding, manifest.num_samples, manifest.image_shape) == ("raw", 20, (3,))


def test_a_negative_std_or_nan_is_refused(tmp_path):
    mean, std = two_clusters(50).numpy(), np.full((50, 3), 0.1, "f4")
    with pytest.raises(DataError, match="negative standard deviation"):
        packed(tmp_path, mean=mean, std=-std)
    mean[:] = np.nan
    with pytest.raises(DataError, match="NaN"):
        packed(tmp_path, mean=mean, std=std)


def test_a_constant_coordinate_is_refused_before_anything_is_written(tmp_path):
    x = two_clusters(400)
    x[:, 1] = 3.0
    config = config_of(packed(tmp_path, latents=x.numpy()), tmp_path)
    with pytest.raises(DataError, match=r"Coordinate 1 of the latents .* has the same value"):
        run_until(config)
    assert not run_storage(config).exists("config.yaml")


def test_a_size_that_does_not_fit_is_refused(points, tmp_path):
    with pytest.raises(
        ConfigError, match=r"latents of shape \[3\], and the configuration has model.latent_shape \[5\]"
    ):
        run_until(config_of(points, tmp_path, "model.latent_dim=5"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("posterior.start=base", "takes latents as they are"),
        ("precision=bf16", "fp32"),
        ("data.flip=true", "mirrors images"),
    ],
)
def test_keys_that_need_images_are_refused(override, says, points, tmp_path):
    with pytest.raises(ConfigError, match=says):
        config_of(points, tmp_path, override, "posterior.num_steps=3" if "start" in override else "run.seed=1")


def test_images_are_refused_where_latents_are_wanted_and_the_other_way_round(digits_url, points, tiny, tmp_path):
    with pytest.raises(DataError, match=r"holds images, and model.generator.form: identity takes latents"):
        run_until(config_of(Storage.at(digits_url), tmp_path))
    images = tiny.model_copy(update={"data": tiny.data.model_copy(update={"url": points.url, "format": None})})
    with pytest.raises(DataError, match=r"latents where model.generator.form is identity"):
        run_until(images)


def test_the_report_and_the_samples_of_latents(points, tmp_path):
    from ebmscale.report.run_report import write_report

    config = config_of(points, tmp_path, "train.max_samples=1600")
    run_until(config)
    page = Storage.at(tmp_path / "runs" / "given").read_bytes
    write_report(run_storage(config))
    text = page("report.html").decode()
    assert "latents of 3" in text
    assert "Reconstructions" not in text
    assert page("samples.png").startswith(b"\x89PNG")
