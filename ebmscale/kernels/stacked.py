"""The ratio networks of a sequence as stacked matrices, for kernels that evaluate all stages at once.

Shapes: N points, Z latent, K stages, H hidden units of a layer.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ebmscale.density.prior import RatioSequence
from ebmscale.kernels.quadratics import Quadratics
from ebmscale.networks import Bounded, QuadraticHead, RatioNet, Standardised
from ebmscale.networks.ratio_heads import Sum


@dataclass(frozen=True)
class StackedMlp:
    """The perceptrons of a sequence: f_k = gain_k * bounded(g_k(z)), with g_k linear layers and activations.

    Attributes:
        activations: those after every layer but the last.
        weights: (K, out, in) of every layer, the last one (K, 1, H).
        biases: (K, 1, out) of every layer.
        gains: (K, 1); None where all are 1.
        bounds: (K, 1), see `networks.Bounded`; None where there are none.
        quadratics: the quadratic parts of the stages; None where there are none.
    """

    activations: tuple[nn.Module, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    gains: Tensor | None = None
    bounds: Tensor | None = None
    quadratics: Quadratics | None = None

    @property
    def activation(self) -> nn.Module | None:
        """The activation of all layers; None if they differ."""
        return self.activations[0] if len({repr(one) for one in self.activations}) == 1 else None

    def without_zeros(self) -> "StackedMlp | None":
        """The perceptrons that are not the zero function, with all quadratics; None where all are zero.

        Of meta tensors, which have no values, none is taken for zero.
        """
        output, offset = self.weights[-1], self.biases[-1]
        if output.is_meta:
            return self
        kept = output.flatten(1).any(1) | offset.flatten(1).any(1)
        if bool(kept.all()):
            return self
        if not bool(kept.any()):
            return None
        return replace(
            self,
            weights=tuple(one[kept] for one in self.weights),
            biases=tuple(one[kept] for one in self.biases),
            gains=None if self.gains is None else self.gains[kept],
            bounds=None if self.bounds is None else self.bounds[kept],
        )

    @property
    def last_is_zero(self) -> bool:
        """Whether the perceptron of the last stage is the zero function; that of meta tensors is not."""
        if self.weights[-1].is_meta:
            return False
        return not bool(self.weights[-1][-1].any() | self.biases[-1][-1].any())

    @property
    def is_plain(self) -> bool:
        """Whether f_k is the perceptron itself."""
        return self.gains is None and self.bounds is None and self.quadratics is None

    def outputs(self, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """f (K, N) from the perceptrons' values g (K, N), and df/dg (K, N), which is None where it is 1."""
        slopes = None
        if self.bounds is not None:
            slopes = torch.sigmoid(self.bounds - values)
            values = values - softplus(values - self.bounds) + torch.log1p(torch.exp(-self.bounds))
        if self.gains is not None:
            values, slopes = self.gains * values, self.gains if slopes is None else self.gains * slopes
        return values, slopes


def stacked(prior: RatioSequence) -> StackedMlp | None:
    """The networks of the prior as matrices; None if they have other parts than this file knows."""
    if not prior.weights:
        return None
    weights, network, prefix = prior.weights, prior.network, ""
    gains = shifts = bounds = quadratics = None
    if isinstance(network, Standardised):
        network, prefix = network.inner, "inner."
        gains, shifts, scales = weights["gain"], weights["shift"], weights["scale"]
    if isinstance(network, Sum):
        if len(network.parts) != 2 or not isinstance(network.parts[0], QuadraticHead) or shifts is None:
            return None
        quadratics = Quadratics.of(prior, f"{prefix}parts.0.")
        network, prefix = network.parts[1], f"{prefix}parts.1."
    if isinstance(network, Bounded):
        bounds = weights[f"{prefix}bound"][:, None]
        network, prefix = network.inner, f"{prefix}inner."
    if type(network) is not RatioNet:
        return None
    layers = list(network.layers)
    linear, activations = layers[0::2], layers[1::2]
    if not activations or not all(isinstance(layer, nn.Linear) for layer in linear):
        return None
    names = [f"{prefix}layers.{2 * index}" for index in range(len(linear))]
    matrices = [weights[f"{name}.weight"] for name in names]
    offsets = [weights[f"{name}.bias"][:, None] for name in names]
    if shifts is not None:  # the first layer takes z itself
        matrices[0] = matrices[0] / scales[:, None]
        offsets[0] = offsets[0] - shifts[:, None] @ matrices[0].mT
    if prior.factors is not None:
        factors = prior.factors.to(matrices[0])
        gains = factors if gains is None else gains * factors
    of_gains = None if gains is None else gains[:, None]
    return StackedMlp(tuple(activations), tuple(matrices), tuple(offsets), of_gains, bounds, quadratics)
