"""Given latents of a known density: log p_K against the truth, and samples that no test can tell from fresh ones."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import MLPClassifier

import ebmscale
from ebmscale.data.formats import open_source
from ebmscale.data.pack import pack
from ebmscale.density.bases import Mixture
from ebmscale.ratios.uses import two_sample_test
from ebmscale.storage import Storage
from tests.pages import ROOT

pytestmark = pytest.mark.slow
NUM, NUM_TEST = 20_000, 2000


def mixture(dim: int) -> Mixture:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, dim, generator=generator) * 2 / dim**0.25
    roots = torch.randn(4, dim, dim, generator=generator) / math.sqrt(dim) * 0.4
    choleskys = torch.linalg.cholesky(roots @ roots.mT + 0.3 * torch.eye(dim))
    return Mixture(torch.tensor([0.4, 0.3, 0.2, 0.1]), means, choleskys)


def draw(q: Mixture, num: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    place = torch.multinomial(q.weights, num, True, generator=generator)
    noise = torch.randn(num, q.dim, 1, generator=generator)
    return q.means[place] + (q.choleskys[place] @ noise)[..., 0]


@pytest.mark.parametrize(
    ("dim", "overrides", "nats"),
    [
        (2, ("prior.base=standard", "prior.base_components=1", "stages.start_samples=0"), 0.05),
        (16, (), 0.1),
    ],
)
def test_log_density_is_near_the_truth_and_samples_look_like_fresh_ones(
    dim: int, overrides: tuple[str, ...], nats: float, tmp_path: Path
) -> None:
    q = mixture(dim)
    np.savez(tmp_path / "z.npz", latents=draw(q, NUM, 1).numpy())
    pack(open_source("npy", str(tmp_path / "z.npz")), Storage.at(tmp_path / "z"))
    config = ebmscale.load_config(
        ROOT / "configs" / "latents.yaml",
        [f"data.url={tmp_path / 'z'}", f"storage.url={tmp_path / 'runs'}", "data.validation_fraction=0.1", *overrides],
    )
    model = ebmscale.train(config).load()
    held_out = draw(q, NUM_TEST, 2)
    found = model.log_density(held_out, model.log_normaliser())
    gap = float((q.log_density(held_out) - found).mean())
    error = float((q.log_density(held_out) - found).std()) / math.sqrt(NUM_TEST)
    assert -3 * error - 0.05 < gap < nats
    ours, fresh = model.sample(NUM_TEST), draw(q, NUM_TEST, 3)
    assert two_sample_test(ours.numpy(), fresh.numpy()).p_value > 0.001
    both = torch.cat([ours, fresh])
    both = ((both - both.mean(0)) / both.std(0)).numpy()
    side = np.repeat([0, 1], NUM_TEST)
    accuracy = cross_val_score(MLPClassifier((64,), max_iter=60, random_state=0), both, side, cv=4).mean()
    assert accuracy < 0.5 + 4 * 0.5 / math.sqrt(2 * NUM_TEST)
