"""A base density p_0 that is a mixture of Gaussians.

Shapes: ... any leading axes, N points, Z latent, C components.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ebmscale.density.mixture_fit import EM_STEPS, Components, fit_components, improve_components
from ebmscale.density.prior import Base


class Mixture(Base):
    """A mixture of Gaussians with full covariances.

    Args:
        weights: (C,) of the components; they add up to 1.
        means: (C, Z) of the components.
        choleskys: (C, Z, Z), the lower triangular Cholesky factors of the covariances.

    Example:
        >>> p = Mixture.fitted(torch.randn(5000, 3), num_components=4)
        >>> p.log_density(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, weights: Tensor, means: Tensor, choleskys: Tensor):
        self.dim = means.shape[1]
        self.weights, self.means, self.choleskys = self.components = Components(weights, means, choleskys)
        self._whiten, self._constant = self.components.whitening(), self.components.log_constants()
        self._shift = means[:, None] @ self._whiten  # C, 1, Z

    @classmethod
    def standard(cls, dim: int, num_components: int) -> "Mixture":
        """N(0, I) as a mixture of `num_components` equal components."""
        shares = torch.full((num_components,), 1 / num_components)
        return cls(shares, torch.zeros(num_components, dim), torch.eye(dim).repeat(num_components, 1, 1))

    @classmethod
    def fitted(
        cls,
        samples: Tensor,
        num_components: int,
        generator: torch.Generator | None = None,
        num_fits: int = 1,
        num_steps: int = EM_STEPS,
        axes: Tensor | None = None,
    ) -> "Mixture":
        """The mixture that expectation maximisation finds (see `density.mixture_fit`).

        Args:
            samples: (N, Z), of about unit scale.
            num_components: C.
            generator: random numbers that choose the first centres.
            num_fits: number of fits, each from other centres. The mean of their densities is a mixture of
                num_fits * C components.
            num_steps: number of steps of expectation maximisation.
            axes: see `mixture_fit.fit_components`.
        """
        fits = range(num_fits)
        return cls.mean_of([fit_components(samples, num_components, generator, num_steps, axes) for _ in fits])

    @classmethod
    def mean_of(cls, fits: Sequence[Components]) -> "Mixture":
        """The mean of the densities of mixtures, which is a mixture of all their components."""
        weights, means, choleskys = (torch.cat(parts) for parts in zip(*fits, strict=True))
        return cls(weights / len(fits), means, choleskys)

    def improved(self, samples: Tensor) -> "Mixture":
        """The mixture after one step of expectation maximisation on samples (N, Z)."""
        return Mixture(*improve_components(self.components, samples))

    def to(self, device: torch.device | str) -> "Mixture":
        """The same mixture on another device."""
        return Mixture(*(tensor.to(device) for tensor in self.components))

    def log_density(self, z: Tensor) -> Tensor:
        """See `prior.Base.log_density`."""
        return self._terms(z).logsumexp(0)

    @torch.no_grad()
    def evaluate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See `prior.Base.evaluate`; without autograd."""
        white = self._white(z)
        terms = self._terms_of(white)
        shares = terms.softmax(0)
        score = torch.bmm(shares[:, :, None] * white, -self._whiten.to(z).mT).sum(0)
        return terms.logsumexp(0), score

    def from_noise(self, noise: Tensor) -> Tensor:
        """See `prior.Base.from_noise`.

        The first number of a row, as a quantile, chooses the component; where it lies among that component's
        quantiles is again uniform, and becomes the row's first number.
        """
        if noise.dim() > 2:
            return self.from_noise(noise.flatten(0, -2)).view(noise.shape)
        normal = torch.distributions.Normal(0.0, 1.0)
        quantile = normal.cdf(noise[:, 0].double())
        ends = self.weights.double().cumsum(0).to(noise.device)
        chosen = torch.searchsorted(ends, quantile).clamp(max=len(ends) - 1)
        width = self.weights.double().to(noise.device)[chosen]
        inner = ((quantile - ends[chosen] + width) / width).clamp(1e-9, 1 - 1e-9)
        white = torch.cat([normal.icdf(inner)[:, None].to(noise), noise[:, 1:]], dim=1)
        order, groups = chosen.argsort(), chosen.bincount(minlength=len(ends)).tolist()
        factors = self.choleskys.to(noise).mT
        parts = zip(white[order].split(groups), factors, strict=True)
        rotated = torch.empty_like(white)
        rotated[order] = torch.cat([part @ root for part, root in parts if len(part)])
        return self.means.to(noise)[chosen] + rotated

    def _white(self, z: Tensor) -> Tensor:
        return torch.baddbmm(-self._shift.to(z), z.expand(len(self.weights), *z.shape), self._whiten.to(z))

    def _terms(self, z: Tensor) -> Tensor:
        """log of weight times density of every component, (C, N)."""
        return self._terms_of(self._white(z))

    def _terms_of(self, white: Tensor) -> Tensor:
        return self._constant.to(white)[:, None] - 0.5 * white.square().sum(-1)
