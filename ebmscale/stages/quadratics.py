"""Sums of quadratic ratios are quadratic: K stages that cost what one costs."""

import torch
from torch import Tensor

from ebmscale.density.prior import RatioSequence
from ebmscale.networks import QuadraticHead, Standardised


def merged(sequence: RatioSequence) -> RatioSequence:
    """The same density with one ratio, where every ratio is a quadratic head alone; else the sequence itself.

    The coefficients are put together in float64, in the coordinates of the last stage: those of an earlier one may be
    so much wider that its quadratic is all rounding error where the last prior lies.
    """
    network = sequence.network
    only_quadratic = isinstance(network, Standardised) and isinstance(network.inner, QuadraticHead)
    if sequence.num_stages < 2 or not only_quadratic:
        return sequence
    last = sequence.stage_weights(sequence.num_stages)
    shift, scale = last["shift"].double(), last["scale"].double()
    quadratic = torch.zeros(len(shift), len(shift), dtype=torch.float64)
    linear, constant = torch.zeros_like(shift), torch.zeros((), dtype=torch.float64)
    for stage in range(1, sequence.num_stages + 1):
        weights = {name: tensor.double() for name, tensor in sequence.stage_weights(stage).items()}
        stretch = scale / weights["scale"]  # a point u of the last stage's coordinates is stretch * u + offset here
        offset = (shift - weights["shift"]) / weights["scale"]
        a, b, c = _coefficients(weights)
        quadratic += weights["gain"] * stretch[:, None] * a * stretch
        linear += weights["gain"] * stretch * ((a + a.T) @ offset + b)
        constant += weights["gain"] * (offset @ a @ offset + b @ offset + c)
    one = {"gain": torch.ones(()), "shift": shift, "scale": scale, "inner.quadratic.weight": quadratic}
    one |= {"inner.linear.weight": linear[None], "inner.linear.bias": constant[None]}
    empty = sequence.prefix(0)
    return empty.append({name: tensor.to(last[name].dtype) for name, tensor in one.items()})


def _coefficients(weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """A (Z, Z), b (Z,) and c () of a stage, in its own coordinates."""
    a = weights["inner.quadratic.weight"]
    return a, weights["inner.linear.weight"][0], weights["inner.linear.bias"][0]
