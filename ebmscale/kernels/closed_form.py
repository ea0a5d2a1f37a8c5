"""The score of the prior in closed form: explicit backpropagation through the stacked ratio networks.

Autograd under vmap has an overhead of about a millisecond a step, more than the products of a few hundred chains take.
Here a step has six batched products and as many elementwise operations, for any number of stages.

Shapes: N chains, Z latent, K stages, H hidden units of a layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ebmscale.density.langevin import Target
from ebmscale.density.prior import RatioSequence
from ebmscale.networks import RatioNet
from ebmscale.networks.ratio_net import SQUARE_BOUND, WithSquares

Backward = Callable[[Tensor, Tensor], Tensor]
"""Maps the gradient at the output of an activation, and its input, to the gradient at its input."""


@dataclass(frozen=True)
class StackedMlp:
    """The K ratio networks as stacked matrices.

    Attributes:
        activations: those after every layer but the last.
        weights: (K, out, in) of every layer, the last one (K, 1, H).
        biases: (K, 1, out) of every layer.
    """

    activations: tuple[nn.Module, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]

    @property
    def activation(self) -> nn.Module | None:
        """The activation of all layers; None if they differ."""
        return self.activations[0] if len({repr(one) for one in self.activations}) == 1 else None


def stacked(prior: RatioSequence) -> StackedMlp | None:
    """The networks of the prior as matrices; None if they are not `RatioNet`s with a supported activation."""
    if type(prior.network) is not RatioNet or not prior.weights:
        return None
    layers = list(prior.network.layers)
    linear, activations = layers[0::2], layers[1::2]
    if not activations or not all(isinstance(layer, nn.Linear) for layer in linear):
        return None
    if any(_backward_of(one) is None for one in activations):
        return None
    names = [f"layers.{2 * index}" for index in range(len(linear))]
    if set(prior.weights) != {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}:
        return None
    weights = tuple(prior.weights[f"{name}.weight"] for name in names)
    biases = tuple(prior.weights[f"{name}.bias"][:, None] for name in names)
    return StackedMlp(tuple(activations), weights, biases)


def _backward_of(activation: nn.Module) -> Backward | None:
    if isinstance(activation, WithSquares):
        return squares_backward
    if isinstance(activation, nn.SiLU):
        return torch.ops.aten.silu_backward
    if isinstance(activation, nn.LeakyReLU):
        slope = activation.negative_slope
        return lambda gradient, x: torch.ops.aten.leaky_relu_backward(gradient, x, slope, False)
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        return torch.ops.aten.gelu_backward
    return None


def squares_backward(gradient: Tensor, x: Tensor) -> Tensor:
    """The backward pass of `WithSquares`: gradients (..., 2 H) at its output and its input x (..., H) to (..., H)."""
    of_units, of_squares = gradient.chunk(2, dim=-1)
    bend = 1 - torch.tanh(x.square() / SQUARE_BOUND).square()
    return of_units + 2 * of_squares * x * bend


def closed_form_target(prior: RatioSequence, dtype: torch.dtype | None = None) -> Target | None:
    """`prior.evaluate` without autograd, equal within rounding error; None if the networks are not supported.

    The target keeps the current weights of the prior.

    Args:
        prior: p_K.
        dtype: of weights and activations (default: that of the weights). Latents, base density and sums over the stages
            keep the dtype of the latents.
    """
    networks = stacked(prior)
    if networks is None:
        return None
    backwards = [backward for one in networks.activations if (backward := _backward_of(one)) is not None]
    base = prior.base.evaluate
    own = networks.weights[0].dtype
    kind = dtype or own
    weights, biases = ([one.to(kind) for one in part] for part in (networks.weights, networks.biases))

    @torch.no_grad()
    def target(z: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = base(z)
        inputs: list[Tensor] = []
        features = z.to(kind).expand(len(weights[0]), *z.shape)  # K, N, Z
        for weight, bias, activation in zip(weights[:-1], biases[:-1], networks.activations, strict=True):
            inputs.append(torch.baddbmm(bias, features, weight.mT))
            features = activation(inputs[-1])
        log_ratios = torch.baddbmm(biases[-1], features, weights[-1].mT)
        gradient = weights[-1].expand(-1, len(z), -1)
        for weight, before, backward in zip(weights[-2:0:-1], inputs[:0:-1], backwards[:0:-1], strict=True):
            gradient = torch.bmm(backward(gradient, before), weight)
        gradient = backwards[0](gradient, inputs[0])
        if kind == own:
            score = torch.addbmm(score, gradient, weights[0])  # sums over K
        else:
            score = score + torch.bmm(gradient, weights[0]).to(own).sum(0)
        return log_density + log_ratios.to(own).sum((0, 2)), score

    return target
