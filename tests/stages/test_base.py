"""The base that is chosen: as many components as held-out draws bear."""

import pytest
import torch

from ebmscale.stages.base import choose_base
from ebmscale.stages.targets import Posteriors, Samples
from tests.stages.test_learn import normal


def test_one_gaussian_is_left_as_it_is() -> None:
    chosen = choose_base(Samples(1 + 2 * normal(2000, 2, seed=0)), Samples(1 + 2 * normal(2000, 2, seed=1)), seed=0)
    assert chosen.base.inside is None
    assert [one.num_components for one in chosen.tried] == [1, 41, 10, 2]


def test_clusters_get_components_and_their_density_is_near() -> None:
    """Six clusters on a ring, seen through posteriors: the density is that of mean and noise together."""
    turn = torch.arange(6) * (2 * torch.pi / 6)
    centres = 4 * torch.stack([turn.cos(), turn.sin()], 1)

    def posteriors(num: int, seed: int) -> Posteriors:
        places = torch.randint(6, (num,), generator=torch.Generator().manual_seed(seed))
        return Posteriors(centres[places] + 0.4 * normal(num, 2, seed=seed), torch.full((num, 2), 0.3))

    chosen = choose_base(posteriors(6000, 0), posteriors(2000, 1), seed=0)
    assert chosen.base.inside is not None
    z = posteriors(2000, 2).every(torch.Generator().manual_seed(3))
    exact = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(6)),
        torch.distributions.Independent(torch.distributions.Normal(centres, 0.5), 1),
    )
    assert float((exact.log_prob(z) - chosen.base.log_density(z)).mean()) == pytest.approx(0, abs=0.05)


def test_a_time_limit_ends_the_search() -> None:
    chosen = choose_base(Samples(normal(2000, 2, seed=0).exp()), Samples(normal(2000, 2, seed=1).exp()), 0, seconds=0.0)
    assert len(chosen.tried) == 2
    assert chosen.base.inside is not None
