"""Quadratic ratios of several stages as one, against their sum in float64."""

import pytest
import torch

from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.kernels.quadratics import merged
from ebmscale.networks import Standardised, vector_ratio


def sequence_of(dim: int, scales: list[float], hidden: tuple[int, ...] = ()) -> RatioSequence:
    """Stages whose coordinates are counted in such units, with random weights, in float32 as fits have them."""
    generator = torch.Generator().manual_seed(dim)
    network = Standardised(vector_ratio(dim, hidden, "silu", quadratic=True), dim)
    sequence = RatioSequence(StandardNormal(dim), network)
    for scale in scales:
        weights = {name: torch.randn(w.shape, generator=generator) for name, w in network.state_dict().items()}
        weights["scale"] = scale * (0.5 + weights["scale"].abs())
        weights["shift"] = scale * weights["shift"]
        weights["gain"] = weights["gain"].abs()
        sequence = sequence.append(weights)
    return sequence


def in_float64(sequence: RatioSequence) -> RatioSequence:
    return RatioSequence(
        sequence.base, sequence.network.double(), {name: w.double() for name, w in sequence.weights.items()}
    )


@pytest.mark.parametrize("dim", [1, 3, 20])
@pytest.mark.parametrize("scales", [[1.0, 1.0], [1.0, 0.3, 0.1], [1.0, 1e-3, 1e-6]])
def test_one_ratio_has_the_density_of_all(dim: int, scales: list[float]) -> None:
    sequence = sequence_of(dim, scales)
    one = merged(sequence)
    assert one.num_stages == 1
    z = scales[-1] * torch.randn(50, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, found = in_float64(sequence).log_density(z), in_float64(one).log_density(z)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-4 * float(exact.std()))
    closer = one.log_density(z.float()).double() - exact
    assert float(closer.abs().max()) < 1e-4 * float(exact.abs().max() + exact.std())


def test_other_ratios_and_single_ones_stay_as_they_are() -> None:
    for sequence in (sequence_of(2, []), sequence_of(2, [1.0]), sequence_of(2, [1.0, 1.0], hidden=(4,))):
        assert merged(sequence) is sequence
