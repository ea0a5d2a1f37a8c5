"""The encoder: shapes, its start at the standard normal, its bound."""

import pytest
import torch

from ebmscale.networks import ARCHITECTURES, LOG_STD_BOUND, build_encoder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_starts_as_the_standard_normal(architecture: str, channels: int) -> None:
    size = ARCHITECTURES[architecture].size
    encoder = build_encoder((channels, size, size), 5, 4, architecture, generator=torch.Generator().manual_seed(0))
    mean, log_std = encoder(torch.randn(2, channels, size, size))
    assert torch.equal(mean, torch.zeros(2, 5))
    assert torch.equal(log_std, torch.zeros(2, 5))


def test_log_std_is_bounded_and_keeps_a_gradient() -> None:
    encoder = build_encoder((1, 8, 8), 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoder.output.bias.fill_(2 * LOG_STD_BOUND)
    _, log_std = encoder(torch.randn(2, 1, 8, 8))
    assert (log_std < LOG_STD_BOUND).all()
    log_std.sum().backward()
    assert encoder.output.bias.grad is not None
    assert (encoder.output.bias.grad[5:] > 0).all()


def test_it_learns_something_that_depends_on_the_image() -> None:
    encoder = build_encoder((1, 8, 8), 2, 4, generator=torch.Generator().manual_seed(0))
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    target = x.mean(dim=(1, 2, 3))
    optimiser = torch.optim.Adam(encoder.parameters(), 1e-2)
    for _ in range(50):
        optimiser.zero_grad()
        loss = (encoder(x)[0][:, 0] - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.2 * target.var()
