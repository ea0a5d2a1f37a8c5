"""Posterior chains and the encoder's bound, against closed forms of a linear Gaussian model (float64)."""

import pytest
import torch
from torch import Tensor, nn

from ebmscale.density.langevin import LangevinSettings
from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.model.image_model import ImageModel
from ebmscale.model.pixels import mirrored, to_images, to_pixels
from ebmscale.model.posterior import log_likelihood, sample_posterior
from ebmscale.networks import RatioNet
from ebmscale.training.objective import generator_loss

DIM, SIGMA = 2, 0.5


class LinearGenerator(nn.Module):
    """x = W z, as an image of 1 x 1 x 3 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.2], [-0.3, 0.8], [0.5, 0.5]], dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T).view(-1, 1, 1, 3)


class LinearEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.location = nn.Linear(3, DIM, dtype=torch.float64)
        self.log_std = nn.Parameter(torch.tensor([-0.4, 0.1], dtype=torch.float64))
        with torch.no_grad():
            self.location.weight.copy_(torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.4, 0.2]]))
            self.location.bias.copy_(torch.tensor([0.1, -0.1]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.location(x.flatten(1)), self.log_std.expand(len(x), -1)


def base_prior() -> RatioSequence:
    return RatioSequence(StandardNormal(DIM), RatioNet(DIM, (4,)).double())


def prior_with_a_ratio() -> RatioSequence:
    network = RatioNet(DIM, (4,)).double()
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(w.shape, generator=generator, dtype=torch.float64) for name, w in network.state_dict().items()
    }
    return RatioSequence(StandardNormal(DIM), network, {}).append(weights)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prior", [base_prior(), prior_with_a_ratio()], ids=["base", "one ratio"])
@pytest.mark.parametrize("num_steps", [0, 1])
def test_the_encoders_gradient_is_that_of_the_evidence_lower_bound(prior: RatioSequence, num_steps: int) -> None:
    model = ImageModel(LinearGenerator(), LinearEncoder())
    assert model.encoder is not None
    x, noise = normal(5, 1, 1, 3, seed=1), normal(5, DIM, seed=2)

    location, log_std = model.encoder(x)
    draw = location + log_std.exp() * noise
    bound = log_likelihood(x, model.generator(draw), SIGMA) + prior.log_density(draw) + log_std.sum(1)
    wanted = torch.autograd.grad(-bound.sum(), list(model.encoder.parameters()))

    settings = LangevinSettings(num_steps, 0.1)
    sample = sample_posterior(model, SIGMA, prior, x, noise, normal(5, num_steps, DIM, seed=3), settings)
    mean, encoded = model(sample.z, x, sample.drawn)
    loss, _ = generator_loss(x, mean, SIGMA, encoded, sample)
    got = torch.autograd.grad(loss.sum(), list(model.encoder.parameters()))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)  # likelihoods are summed in float32


def test_an_encoder_alone_passes_through_the_generator_once() -> None:
    passes = []
    model = ImageModel(LinearGenerator(), LinearEncoder())
    model.generator.register_forward_hook(lambda *_: passes.append(1))
    x, noise = normal(5, 1, 1, 3, seed=1), normal(5, DIM, seed=2)
    sample = sample_posterior(
        model, SIGMA, base_prior(), x, noise, noise.new_empty(5, 0, DIM), LangevinSettings(0, 0.1)
    )
    model(sample.z, x, sample.drawn)
    assert len(passes) == 1


def test_long_posterior_chains_reach_the_closed_form_posterior() -> None:
    """p(z | x) = N(S W^T x / sigma^2, S) with S = (I + W^T W / sigma^2)^-1."""
    generator = LinearGenerator()
    weight = generator.weight.detach()
    num, steps = 20_000, 300
    x = torch.tensor([0.7, -0.4, 0.2], dtype=torch.float64).view(1, 1, 1, 3).expand(num, 1, 1, 3)
    covariance = torch.linalg.inv(torch.eye(DIM, dtype=torch.float64) + weight.T @ weight / SIGMA**2)
    mean = covariance @ weight.T @ x[0].flatten() / SIGMA**2
    settings = LangevinSettings(steps, 0.1)
    sample = sample_posterior(
        ImageModel(generator, None), SIGMA, base_prior(), x, normal(num, DIM), normal(num, steps, DIM, seed=3), settings
    )
    error = covariance.diagonal().sqrt() / num**0.5
    assert ((sample.z.mean(0) - mean).abs() < 4 * error).all()
    # The step's own bias is s^2 / 4 relative at unit curvature, here below 2 %.
    torch.testing.assert_close(sample.z.T.cov(), covariance, rtol=0.06, atol=0.01)
    assert sample.start_noise is None
    assert sample.trace.log_density[-1] > sample.trace.log_density[0]


def test_chains_leave_no_gradient_on_parameters() -> None:
    model = ImageModel(LinearGenerator(), LinearEncoder())
    x = normal(3, 1, 1, 3)
    settings = LangevinSettings(4, 0.1)
    sample = sample_posterior(model, SIGMA, base_prior(), x, normal(3, DIM), normal(3, 4, DIM), settings)
    assert not sample.z.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_is_the_gaussian_one_and_the_error_is_a_mean() -> None:
    x, mean = normal(4, 1, 2, 2, seed=5), normal(4, 1, 2, 2, seed=6)
    model = ImageModel(LinearGenerator(), None)
    settings = LangevinSettings(1, 0.1)
    sample = sample_posterior(
        model, SIGMA, base_prior(), normal(4, 1, 1, 3), normal(4, DIM), normal(4, 1, DIM), settings
    )
    loss, squared_error = generator_loss(x, mean, SIGMA, None, sample)
    wanted = (x - mean).square().flatten(1)
    torch.testing.assert_close(loss.double(), wanted.sum(1) / (2 * SIGMA**2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(squared_error.double(), wanted.mean(1), rtol=1e-6, atol=1e-6)


def test_pixels_and_images_are_inverse() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    pixels = to_pixels(images)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert torch.equal(to_images(pixels), images)
    assert torch.equal(to_images(torch.tensor([-5.0, 5.0, float("nan")])), torch.tensor([0, 255, 128]).byte())


def test_an_encoder_without_a_chain_gives_the_gaussians_that_its_latents_are_draws_of() -> None:
    model, x = ImageModel(LinearGenerator(), LinearEncoder()), torch.randn(6, 1, 1, 3, dtype=torch.float64)
    noise = torch.randn(6, DIM)
    for num_steps in (0, 2):
        settings = LangevinSettings(num_steps, 0.1)
        chain_noise = torch.zeros(6, num_steps, DIM, dtype=torch.float64)
        sample = sample_posterior(model, SIGMA, base_prior(), x, noise, chain_noise, settings)
        assert (sample.moments is None) == (num_steps > 0)
        if sample.moments is not None:
            mean, std = sample.moments.chunk(2, dim=1)
            torch.testing.assert_close(mean + std * noise, sample.z)


def test_images_are_mirrored_left_to_right_where_their_number_is_small() -> None:
    x = torch.arange(12.0).view(2, 1, 2, 3)
    got = mirrored(x, torch.tensor([0.2, 0.7]))
    assert torch.equal(got[0, 0], torch.tensor([[2.0, 1.0, 0.0], [5.0, 4.0, 3.0]]))
    assert torch.equal(got[1], x[1])
