"""The base that is chosen: as many components as held-out draws bear."""

import pytest
import torch

from ebmscale.density.bases import MomentBase
from ebmscale.density.prior import StandardNormal
from ebmscale.model.prior_base import base_from, filled_up
from ebmscale.stages.base import choose_among, choose_base
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


def test_of_given_numbers_the_likeliest_is_taken_and_no_larger_one_is_tried_after_it_is_worse() -> None:
    """Three clusters: 3 components are likelier than 1, and 40 on 200 points are overfit."""
    centres = torch.tensor([[0.0, 4.0], [3.5, -2.0], [-3.5, -2.0]])

    def points(num: int, seed: int) -> Samples:
        places = torch.randint(3, (num,), generator=torch.Generator().manual_seed(seed))
        return Samples(centres[places] + 0.5 * normal(num, 2, seed=seed))

    chosen = choose_among(points(200, 0), points(2000, 1), (1, 3, 40, 60), seed=0)
    assert [one.num_components for one in chosen.tried] == [1, 3, 40]
    assert chosen.base.inside is not None
    assert len(chosen.base.inside.weights) == 3
    plain = choose_among(points(200, 0), points(2000, 1), (1,), seed=0)
    assert plain.base.inside is None


def test_the_mean_of_two_mixtures_is_taken_where_it_is_likelier() -> None:
    """A bent plane in twelve dimensions, on which mixtures from other centres err in other places."""
    turn = normal(2, 12, seed=7)

    def points(num: int, seed: int) -> Samples:
        return Samples(torch.tanh(2 * normal(num, 2, seed=seed) @ turn) + 0.2 * normal(num, 12, seed=seed + 50))

    several = choose_among(points(1500, 0), points(4000, 100), (1, 16), seed=0, fits=2)
    assert [tried.num_components for tried in several.tried] == [1, 16, 32]
    assert several.tried[2].nats > several.tried[1].nats + 0.02
    assert several.base.inside is not None
    assert len(several.base.inside.weights) == 32
    assert float(several.base.inside.weights.sum()) == pytest.approx(1, abs=1e-5)


def test_a_standard_normal_needs_no_room() -> None:
    assert filled_up(StandardNormal(3).tensors(), 60) == {}


def test_room_for_more_components_changes_no_density() -> None:
    z = normal(50, 2, seed=3)
    base = MomentBase.of_posteriors(normal(500, 2, seed=0), torch.zeros(500, 2), 3)
    for one in (base, MomentBase(base.mean, base.cholesky)):
        tensors = filled_up(one.tensors(), 5)
        assert {name: size.shape for name, size in tensors.items()} == {
            name: size.shape for name, size in MomentBase.standard(2, 5).tensors().items()
        }
        again = base_from(2, {name: tensor.flatten() for name, tensor in tensors.items()})
        torch.testing.assert_close(again.log_density(z), one.log_density(z))
        noise = normal(2000, 2, seed=4)
        assert bool(again.from_noise(noise).isfinite().all())
        assert all(torch.equal(filled_up(again.tensors(), 5)[name], tensors[name]) for name in tensors)
