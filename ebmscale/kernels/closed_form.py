"""The score in closed form: explicit backpropagation through the stacked ratio networks.

Autograd under vmap has an overhead of about a millisecond a step, more than the products of a few hundred chains take,
and moves twice as much memory. Here a step has six batched products and as many elementwise operations, for any number
of stages.

Shapes: N points, Z latent, K stages, H hidden units of a layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ebmscale.density.langevin import Target
from ebmscale.density.path import Leg
from ebmscale.density.prior import RatioSequence
from ebmscale.kernels.quadratics import Quadratics, merged
from ebmscale.kernels.stacked import StackedMlp, stacked
from ebmscale.networks.ratio_net import SQUARE_BOUND, WithSquares

ROWS_AT_ONCE = 1024
"""Points whose features stay in a processor's cache."""

Backward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps the gradient at an activation's output, its input and its output to the gradient at its input."""


def _backward_of(activation: nn.Module) -> Backward | None:
    if isinstance(activation, WithSquares):
        return squares_backward
    if isinstance(activation, nn.SiLU):
        return lambda gradient, x, y: torch.ops.aten.silu_backward(gradient, x)
    if isinstance(activation, nn.LeakyReLU):
        slope = activation.negative_slope
        return lambda gradient, x, y: torch.ops.aten.leaky_relu_backward(gradient, x, slope, False)
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        return lambda gradient, x, y: torch.ops.aten.gelu_backward(gradient, x)
    return None


def squares_backward(gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The backward pass of `WithSquares`.

    Args:
        gradient: (..., 2 H) at its output.
        x: (..., H), its input.
        y: (..., 2 H), its output.

    Returns:
        The gradient (..., H) at its input.
    """
    of_units, of_squares = gradient.chunk(2, dim=-1)
    bend = 1 - (y.chunk(2, dim=-1)[1] / SQUARE_BOUND).square()
    return of_units + 2 * of_squares * x * bend


def closed_form_target(prior: RatioSequence, dtype: torch.dtype | None = None) -> Target | None:
    """`prior.evaluate` without autograd, equal within rounding error; None if the networks are not supported.

    The target keeps the current weights of the prior.

    Args:
        prior: p_K.
        dtype: of weights and activations (default: that of the weights). Latents, base density and sums over the stages
            keep the dtype of the latents.
    """
    networks = _supported(prior)
    if networks is None:
        return None
    base, ratios, power = prior.base.evaluate, _Ratios(networks, dtype), prior.base_power
    quadratic = None if networks.quadratics is None else networks.quadratics.merged()

    @torch.no_grad()
    def block(z: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = base(z)
        if power != 1:
            log_density, score = power * log_density, power * score
        return _added(log_density, *ratios.evaluate(z, score), quadratic, z)

    return _blockwise(block) if networks.weights[0].device.type == "cpu" else block


def closed_form_sum(prior: RatioSequence) -> Callable[[Tensor], Tensor] | None:
    """`prior.log_weight` as a function from z (N, Z) to (N,), without a graph; None for networks without support."""
    networks = _supported(prior)
    if networks is None:
        return None
    ratios, inside, power = _Ratios(networks, None), prior.base.in_coordinates(), prior.base_power
    quadratic = None if networks.quadratics is None else networks.quadratics.merged()

    @torch.no_grad()
    def total(z: Tensor) -> Tensor:
        z = prior.base.coordinates(z)
        value = ratios.sum(z)
        value = value if quadratic is None else value + quadratic.evaluate(z)[0][0]
        return value if power == 1 else value + (power - 1) * inside.log_density(z)

    return lambda z: torch.cat([total(part) for part in z.split(ROWS_AT_ONCE)])


def rung_target(prior: RatioSequence) -> Callable[[Tensor], Target] | None:
    """The density p_{K-1} r_K^t on the way from p_{K-1} to p_K, without autograd; None where that is not supported.

    Returns:
        A function of the strengths t (N,) of every point's own rung. Where p_{K-1} has the power b, the rung is
        p_{K-1}^(1 + t (b - 1)) e^(t f_K).
    """
    num, power = prior.num_stages, prior.last_power
    prior = prior if power == 1 else prior.prefix(num - 1).append(prior.stage_weights(num))
    networks, of_base = _supported(prior), prior.base_power
    if networks is None or prior.base.in_coordinates() is not prior.base:
        return None
    base, ratios = prior.base.evaluate, _Ratios(networks, None)
    before = after = None
    if networks.quadratics is not None:
        after = networks.quadratics.stages(num - 1, num)
        before = networks.quadratics.stages(0, num - 1).merged() if num > 1 else None

    @torch.no_grad()
    def block(z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = base(z)
        if of_base != 1:
            log_density, score = of_base * log_density, of_base * score
        if power == 1:
            value, score = _added(log_density, *ratios.evaluate(z, score, t), before, z)
        else:  # all but the last ratio is raised in the end
            raised = 1 + t * (power - 1)
            value, score = _added(log_density, *ratios.evaluate(z, score, t / raised), before, z)
            value, score = raised * value, raised[:, None] * score
        if after is not None:
            values, gradients = after.evaluate(z)
            value, score = value + t * values[0], score + t[:, None] * gradients[0]
        return value, score

    def at(strength: Tensor) -> Target:
        def target(z: Tensor) -> tuple[Tensor, Tensor]:
            rows = zip(z.split(ROWS_AT_ONCE), strength.split(ROWS_AT_ONCE), strict=True)
            parts = [block(part, t) for part, t in rows]
            return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

        return target

    return at


def _supported(prior: RatioSequence) -> StackedMlp | None:
    """The networks of the prior if their score is known in closed form."""
    networks = stacked(prior)
    if networks is None or any(_backward_of(one) is None for one in networks.activations):
        return None
    return networks


def stage_legs(prior: RatioSequence) -> list[Leg]:
    """`density.path.stage_legs` with rungs in closed form where the networks are supported."""
    return [last_leg(prior.prefix(stage)) for stage in range(1, prior.num_stages + 1)]


def last_leg(prior: RatioSequence) -> Leg:
    """The leg from p_{K-1} to p_K."""
    before, alone, power = merged(prior.prefix(prior.num_stages - 1)), prior.last(), prior.last_power
    ratio = closed_form_sum(alone) or alone.log_weight
    if power == 1:
        return Leg(before.log_density, ratio, rung_target(prior))
    weight = closed_form_sum(before) or before.log_weight

    def raised(z: Tensor) -> Tensor:
        return ratio(z) + (power - 1) * (before.base.log_density(z) + before.base.log_volume + weight(z))

    return Leg(before.log_density, raised, rung_target(prior))


class _Ratios:
    """The values of the perceptrons of all stages and the gradient of their sum; zero functions cost nothing."""

    def __init__(self, networks: StackedMlp, dtype: torch.dtype | None):
        self._own = networks.weights[0].dtype
        self._kind = dtype or self._own
        self._networks = networks.without_zeros()
        self._last_is_zero = networks.last_is_zero
        if self._networks is not None:
            self._backwards = [back for one in networks.activations if (back := _backward_of(one)) is not None]
            self._weights = [one.to(self._kind) for one in self._networks.weights]
            self._biases = [one.to(self._kind) for one in self._networks.biases]

    def sum(self, z: Tensor) -> Tensor:
        """The sum of f_k (N,) at z (N, Z)."""
        if self._networks is None:
            return z.new_zeros(len(z))
        features, _ = self._features(z, self._networks)
        return self._outputs(features, self._networks)[0].sum(0)

    def evaluate(self, z: Tensor, score: Tensor, last: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sum of f_k (N,) at z (N, Z), and `score` plus its gradient (N, Z).

        Args:
            z: points.
            score: (N, Z) what is added to.
            last: (N,) factor of f_K; 1 where there is none.
        """
        if self._networks is None:
            return z.new_zeros(len(z)), score
        weights = self._weights
        features, passed = self._features(z, self._networks)
        values, slopes = self._outputs(features, self._networks)
        if last is not None and not self._last_is_zero:
            values = torch.cat([values[:-1], last * values[-1:]])
            ones = torch.ones_like(values) if slopes is None else slopes.expand_as(values)
            slopes = torch.cat([ones[:-1], last * ones[-1:]])
        gradient = weights[-1].expand(-1, len(z), -1)
        if slopes is not None:
            gradient = gradient * slopes.expand_as(values)[:, :, None].to(self._kind)
        for weight, both, backward in zip(weights[-2:0:-1], passed[:0:-1], self._backwards[:0:-1], strict=True):
            gradient = torch.bmm(backward(gradient, *both), weight)
        gradient = self._backwards[0](gradient, *passed[0])
        if self._kind == self._own:
            score = torch.addbmm(score, gradient, weights[0])  # sums over K
        else:
            score = score + torch.bmm(gradient, weights[0]).to(self._own).sum(0)
        return values.sum(0), score

    def _features(self, z: Tensor, networks: StackedMlp) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The inputs (K, N, H) of the last layer, and input and output of every activation."""
        passed: list[tuple[Tensor, Tensor]] = []
        features = z.to(self._kind).expand(len(self._weights[0]), *z.shape)  # K, N, Z
        layers = zip(self._weights[:-1], self._biases[:-1], networks.activations, strict=True)
        for weight, bias, activation in layers:
            before = torch.baddbmm(bias, features, weight.mT)
            features = activation(before)
            passed.append((before, features))
        return features, passed

    def _outputs(self, features: Tensor, networks: StackedMlp) -> tuple[Tensor, Tensor | None]:
        """See `StackedMlp.outputs`."""
        values = torch.baddbmm(self._biases[-1], features, self._weights[-1].mT)[:, :, 0]
        return networks.outputs(values.to(self._own))


def _added(
    log_density: Tensor, of_ratios: Tensor, score: Tensor, quadratic: Quadratics | None, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Log density with the perceptrons' values, and score, both with a quadratic."""
    if quadratic is None:
        return log_density + of_ratios, score
    values, gradients = quadratic.evaluate(z)
    return log_density + of_ratios + values[0], score + gradients[0]


def _blockwise(target: Target) -> Target:
    """The target evaluated on `ROWS_AT_ONCE` points at a time."""

    def whole(z: Tensor) -> tuple[Tensor, Tensor]:
        parts = [target(part) for part in z.split(ROWS_AT_ONCE)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    return whole
