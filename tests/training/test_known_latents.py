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
from ebmscale.density.mixture import Mixture
from ebmscale.ratios.uses import two_sample_test
from ebmscale.storage import Storage
from tests.pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
NUM, NUM_TEST = 20_000, 2000


def mixture(dim: int) -> Mixture:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, dim, generator=generator) * 2 / dim**0.25
    roots = torch.randn(4, dim, dim, generator=generator) / math.sqrt(dim) * 0.4
    choleskys = torch.linalg.cholesky(roots @ roots.mT + 0.3 * torch.eye(dim))
    return Mixture(torch.tensor([0.4, 0.3, 0.2, 0.1]), means, choleskys)


def fields() -> Mixture:
    """Two Markov random fields of Gaussians on 4 maps of 4x4, with neighbours and channels coupled."""
    places = torch.arange(64).view(4, 4, 4)
    precision = 1.3 * torch.eye(64, dtype=torch.float64)
    for axis, coupling in enumerate((0.15, 0.22, 0.22)):
        one, other = (places.narrow(axis, first, 3).flatten() for first in (0, 1))
        precision[one, other] = precision[other, one] = -coupling
    root = torch.linalg.cholesky(torch.linalg.inv(precision)).float()
    return Mixture(torch.full((2,), 0.5), torch.stack([torch.ones(64), -torch.ones(64)]), root.expand(2, 64, 64))


def draw(q: Mixture, num: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    place = torch.multinomial(q.weights, num, True, generator=generator)
    noise = torch.randn(num, q.dim, 1, generator=generator)
    return q.means[place] + (q.choleskys[place] @ noise)[..., 0]


@pytest.mark.parametrize(
    ("q", "shape", "overrides", "nats"),
    [
        (mixture(2), (2,), ("prior.base=standard", "prior.base_components=1", "stages.start_samples=0"), 0.05),
        (mixture(16), (16,), (), 0.1),
        # 18,000 latents are few for four covariances in 128 dimensions: the fit itself costs 33,535 / 36,000 nats.
        (mixture(128), (128,), (), 1.2),
        (fields(), (4, 4, 4), ("model.ratio={form: residual, hidden: [32]}",), 0.2),
    ],
    ids=["2", "16", "128", "fields"],
)
def test_log_density_is_near_the_truth_and_samples_look_like_fresh_ones(
    q: Mixture, shape: tuple[int, ...], overrides: tuple[str, ...], nats: float, tmp_path: Path
) -> None:
    np.savez(tmp_path / "z.npz", latents=draw(q, NUM, 1).view(-1, *shape).numpy())
    pack(open_source("npy", str(tmp_path / "z.npz")), Storage.at(tmp_path / "z"))
    config = ebmscale.load_config(
        ROOT / "configs" / "latents.yaml",
        [f"data.url={tmp_path / 'z'}", f"storage.url={tmp_path / 'runs'}", "data.validation_fraction=0.1", *overrides],
    )
    model = ebmscale.train(config).load()
    held_out = draw(q, NUM_TEST, 2)
    found = model.log_density(held_out.view(-1, *shape), model.log_normaliser())
    gap = float((q.log_density(held_out) - found).mean())
    error = float((q.log_density(held_out) - found).std()) / math.sqrt(NUM_TEST)
    ours, fresh = model.sample(NUM_TEST).flatten(1), draw(q, NUM_TEST, 3)
    p_value = two_sample_test(ours.numpy(), fresh.numpy()).p_value
    both = torch.cat([ours, fresh])
    both = ((both - both.mean(0)) / both.std(0)).numpy()
    side = np.repeat([0, 1], NUM_TEST)
    accuracy = cross_val_score(MLPClassifier((64,), max_iter=60, random_state=0), both, side, cv=4).mean()
    print(f"gap {gap:.3f} +- {error:.3f} nats, p-value {p_value:.3f}, accuracy {accuracy:.3f}")
    assert -3 * error - 0.05 < gap < nats
    assert p_value > 0.001
    assert accuracy < 0.5 + 4 * 0.5 / math.sqrt(2 * NUM_TEST)
