"""Samples that share the upper layer of latents: the conditional distribution of a known prior."""

import torch

from ebmscale.config import RunConfig
from ebmscale.density.prior import RatioSequence
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.prior_base import base_from
from ebmscale.model.samples_by_layer import samples_by_layer
from tests.training.test_resume import changed

TOP, NUM = 1, 40


def test_the_upper_layer_stays_and_the_lower_one_is_drawn_given_it(tiny: RunConfig) -> None:
    """Under N(0, I) the lower coordinates do not depend on the upper ones, and keep their distribution."""
    config = changed(tiny, model={"generator": {"top": TOP}}, prior={"sample_steps": 60, "step_size": 0.3})
    prior = RatioSequence(base_from(4, {}), build_ratio_network(config))
    model = LatentModel(config, build_model(config, (1, 8, 8)).requires_grad_(False), prior, (1, 8, 8), 0)
    u = model.sample_prior(50, seed=1)
    found = samples_by_layer(model, u, NUM, seed=2).view(50, NUM, 4)
    assert torch.equal(found[:, 0], u)
    assert torch.equal(found[:, :, :TOP], u[:, None, :TOP].expand(-1, NUM, -1))
    lower = found[:, 1:, TOP:]
    assert lower.mean().abs() < 0.1
    assert 0.9 < lower.std() < 1.1
    assert torch.corrcoef(torch.stack([lower[:, 0].flatten(), u[:, TOP:].flatten()]))[0, 1].abs() < 0.3
    assert torch.equal(samples_by_layer(model, u, NUM, seed=2), found.flatten(0, 1))
