"""The normaliser of a ratio sequence: its value, and its independence of the number of workers."""

import math

import pytest
import torch
from torch import Tensor, nn

from ebmscale.density.estimates import pooled
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.model.normaliser import measure_normaliser, walk_prior

DIM = 2


class Bowl(nn.Module):
    """-a |z|^2 / 2, so that every stage is a Gaussian."""

    def __init__(self, sharpness: float):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def forward(self, z: Tensor) -> Tensor:
        return -0.5 * self.sharpness * z.square().sum(-1)


@pytest.fixture
def prior() -> RatioSequence:
    """log Z_K = -(d/2) log(1 + 1 + 3)."""
    sequence = RatioSequence(StandardNormal(DIM), Bowl(0.0))
    return sequence.append(Bowl(1.0).state_dict()).append(Bowl(3.0).state_dict())


def test_the_normaliser_of_gaussian_stages(prior: RatioSequence) -> None:
    found = measure_normaliser(prior, num_groups=16, group_size=256)
    assert found.error < 0.03
    assert found.log_z == pytest.approx(-0.5 * DIM * math.log(5), abs=4 * found.error)
    assert found.bridge == pytest.approx(found.log_z, abs=0.1)


def test_without_stages_it_is_one(prior: RatioSequence) -> None:
    assert measure_normaliser(prior.prefix(0), num_groups=2, group_size=8) == (0.0, 0.0, 0.0)


def test_it_does_not_depend_on_the_number_of_workers(prior: RatioSequence) -> None:
    whole = measure_normaliser(prior, seed=4, num_groups=4, group_size=64)
    shares = [walk_prior(prior, 4, groups, 64) for groups in ([0, 2], [1, 3])]
    log_z = torch.cat([share.log_z.sum(1) for share in shares])
    assert pooled(log_z) == pytest.approx((whole.log_z, whole.error), rel=1e-4)
