"""The same stages on the latents of a run, given as data, reach at least what the run's own stages reach."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import ebmscale
from ebmscale.config import load_config
from ebmscale.data.chunks import read_split
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.evaluate.encode_parts import EncodeJob, coder_of_run
from ebmscale.model.run_folder import run_storage
from ebmscale.runtime.part_job import Workers
from ebmscale.runtime.parts import run_parts
from ebmscale.storage import Storage
from tests.pages import ROOT

MNIST = ROOT.parent / "shared" / "data" / "mnist"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
BOTH = [
    "prior.base=standard",
    "posterior.start=encoder",
    "posterior.num_steps=0",
    "stages.updates_per_batch=4",
    "stages.buffer_samples=12800",
    "stages.min_samples=12800",
    "stages.max_samples=25600",
    "stages.evidence_every=2560",
    "stages.evidence_samples=320",
    "stages.max_stages=2",
    "data.num_streams=32",
    "data.shuffle_window=32",
    "data.validation_fraction=0.2",
    "train.batch_size=128",
]


def nats(log_density: torch.Tensor) -> tuple[float, float]:
    return float(log_density.mean()), float(log_density.std()) / math.sqrt(len(log_density))


@pytest.fixture
def mnist_url(tmp_path: Path) -> str:
    """The official files, packed."""
    if not MNIST.exists():
        pytest.skip("the official MNIST files are not on this machine")
    url = str(tmp_path / "mnist")
    pack(open_source("idx", str(MNIST)), Storage.at(url))
    return url


def test_latents_of_digits_as_data_reach_what_the_run_reaches(digits_url: str, tmp_path: Path) -> None:
    more, error = compare("digits.yaml", digits_url, 60_000, tmp_path)
    assert abs(more) < 0.5 + 3 * error


def test_latents_of_mnist_as_data_reach_what_the_run_reaches(mnist_url: str, tmp_path: Path) -> None:
    """They reach more: the run's own latents are far from N(0, I), and given ones are standardised."""
    more, error = compare("mnist_joint.yaml", mnist_url, 120_000, tmp_path)
    assert more > -0.5 - 3 * error


def compare(preset: str, url: str, num_first: int, tmp_path: Path) -> tuple[float, float]:
    """Trains two stages on a preset's latents after `num_first` images, and on the same latents as data.

    Returns:
        By how many nats a held-out latent is likelier under the second prior, and the standard error.
    """
    home = f"storage.url={tmp_path / 'runs'}"
    first = load_config(
        ROOT / "configs" / preset,
        [*BOTH, home, f"data.url={url}", f"train.generator.stop_samples={num_first}",
         f"stages.start_samples={num_first}", f"train.max_samples={num_first + 60_000}"],
    )  # fmt: skip
    model = ebmscale.train(first).load()
    latents = Storage.at(tmp_path / "z")
    job = EncodeJob.of(coder_of_run(run_storage(first)), Storage.at(url), latents, 0, "cpu")
    run_parts(job, Workers())
    job.join()
    second = load_config(
        ROOT / "configs" / "latents.yaml",
        [*BOTH, home, f"data.url={latents.url}", "prior.base_components=1",
         "stages.start_samples=12800", "train.max_samples=80000", "model.ratio.hidden=[128,128]",
         "model.ratio.squares=true"],
    )  # fmt: skip
    given = ebmscale.train(second).load()
    rows = read_split(latents, Manifest.load(latents), "validation", None, 0.2)[0]
    mean, std = rows[:, 0], rows[:, 1]
    z = mean + std * torch.from_numpy(np.random.default_rng(0).standard_normal(mean.shape).astype("f4"))
    own, own_error = nats(model.log_prior(z, model.log_normaliser()))
    other, other_error = nats(given.log_density(z, given.log_normaliser()))
    base, _ = nats(model.at_stage(0).log_prior(z))
    print(f"{preset}: {base:.2f} under p_0, {own:.2f} in the run, {other:.2f} on its latents as data")
    assert own > base + 2
    return other - own, math.hypot(own_error, other_error)
