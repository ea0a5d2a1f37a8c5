"""Log likelihood of images under p(x) = integral p_K(z) N(x; G(z), sigma^2 I) dz, with lower and upper bounds.

For every image a Gaussian is fitted to draws of its posterior chain. Two estimates of p(x) are unbiased: importance
sampling from this Gaussian, and annealed importance sampling from it to p(x, z) (Neal 2001; Wu et al. 2017). So their
logarithms are lower bounds in expectation. The reversed annealing starts from a posterior sample and gives an unbiased
estimate of 1 / p(x), hence an upper bound (bidirectional Monte Carlo, Grosse et al. 2015). This bound is valid if the
start is an exact posterior sample, as it is for images drawn from the model together with their latents. Otherwise it
is as accurate as the samples at its start.

Shapes: B images, N particles of an image, Z latent, D = C H W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ebmscale.data.chunks import CHUNK_SAMPLES
from ebmscale.density.estimates import importance_estimate
from ebmscale.density.path import Annealing, Leg, Normaliser
from ebmscale.density.resampling import resample_systematically
from ebmscale.density.smc import anneal
from ebmscale.errors import DataError
from ebmscale.evaluate.images import ImageSet, chunk_seed
from ebmscale.evaluate.measure import ROW, Tensors, in_order, rows_of, stacked
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.normaliser import measure_normaliser
from ebmscale.model.posterior import log_likelihood
from ebmscale.seeds import StreamNoise, torch_generator

CONVENTION = (
    "bits per dimension of bytes v: pixels are (v + u - 1/2) / 127.5 - 1 with u uniform in [0, 1), so a level is "
    "1 / 127.5 wide, and bits = -(log p(x) - D log 127.5) / (D log 2), an upper bound on the bits of the bytes "
    "themselves; p(x|z) = N(x; G(z), sigma^2 I) with the run's sigma, whose noise alone costs "
    "log2(127.5 sigma sqrt(2 pi e)) bits."
)
PIXEL_LEVELS = 127.5
NO_NORMALISER = Normaliser(0.0, 0.0, 0.0)


class Proposals(NamedTuple):
    """A Gaussian over latents for every image: mean (B, Z) and lower triangular cholesky (B, Z, Z)."""

    mean: Tensor
    cholesky: Tensor

    def from_noise(self, noise: Tensor) -> Tensor:
        """Samples (B, N, Z) from standard normal noise (B, N, Z)."""
        return self.mean[:, None] + noise @ self.cholesky.mT

    def log_density(self, rows: Tensor) -> Tensor:
        """Log density (B * N,) at rows (B * N, Z). The rows of an image are consecutive."""
        num_images, dim = self.mean.shape
        offsets = (rows.view(num_images, -1, dim) - self.mean[:, None]).mT
        white = torch.linalg.solve_triangular(self.cholesky, offsets, upper=False)
        constant = self.cholesky.diagonal(dim1=1, dim2=2).log().sum(1) + 0.5 * dim * math.log(2 * math.pi)
        return (-0.5 * white.square().sum(1) - constant[:, None]).flatten()


class Bounds(NamedTuple):
    """Estimates of log p(x) in nats with standard errors, each (B,): importance sampling, annealed, upper bound."""

    importance: Tensor
    importance_error: Tensor
    annealed: Tensor
    annealed_error: Tensor
    upper: Tensor
    upper_error: Tensor


@dataclass(frozen=True)
class Likelihood:
    """Log likelihoods of images.

    Attributes:
        bounds: of every image, with the normalised prior.
        num_pixels: D.
        normaliser: of the prior. Its error is common to all images and is not included in their errors.
        exact_start: whether the upper bounds start from exact posterior samples.
    """

    bounds: Bounds
    num_pixels: int
    normaliser: Normaliser
    exact_start: bool

    @property
    def figures(self) -> dict[str, float]:
        """Means over the images in nats and in bits per dimension, with standard errors over the images."""
        found: dict[str, float] = {}
        for name in ("importance", "annealed", "upper"):
            values = getattr(self.bounds, name)
            found[f"log_likelihood_{name}"] = float(values.mean())
            found[f"log_likelihood_{name}_error"] = float(values.std() / math.sqrt(len(values)))
            found[f"bits_per_dim_{name}"] = float(bits_per_dim(values, self.num_pixels).mean())
        found |= {"log_z": self.normaliser.log_z, "log_z_error": self.normaliser.error}
        return found | {"gap": found["log_likelihood_upper"] - found["log_likelihood_annealed"]}


def bits_per_dim(log_p: Tensor, num_pixels: int) -> Tensor:
    """Bits per dimension (B,) of bytes whose dequantised pixels have the log density `log_p` (B,); see `CONVENTION`."""
    return -(log_p / num_pixels - math.log(PIXEL_LEVELS)) / math.log(2)


def likelihood(
    model: LatentModel,
    x: Tensor,
    *,
    num_particles: int = 16,
    seed: int = 0,
    latents: Tensor | None = None,
    normaliser: Normaliser | None = None,
    images_at_once: int = 32,
    settings: Annealing | None = None,
    progress: Callable[[int], None] = lambda num: None,
) -> Likelihood:
    """Estimates log p(x) of images.

    Args:
        model: a trained model.
        x: (B, C, H, W): bytes, which are dequantised, or pixels in [-1, 1].
        num_particles: N, for every image and estimate.
        seed: of all noise.
        latents: (B, Z) the latents of x, if x was drawn from the model. The upper bounds are then valid.
        normaliser: of the prior. None: it is estimated here.
        images_at_once: number of images that are processed together.
        settings: of the annealing.
        progress: called with the number of images that are done.

    Raises:
        DataError: there are no images, or they do not have the shape of the model.
    """
    if not len(x) or tuple(x.shape[1:]) != tuple(model.image_shape):
        raise DataError(f"Images of shape {tuple(model.image_shape)} are needed, at least one, not {tuple(x.shape)}.")
    normaliser = normaliser or measure_normaliser(model.prior, seed)
    pixels = dequantised(x, seed)
    parts = []
    for index, part in enumerate(pixels.split(images_at_once)):
        first = index * images_at_once
        known = None if latents is None else latents[first : first + len(part)]
        parts.append(_of_images(model, part, num_particles, seed, first, known, normaliser, settings or Annealing()))
        progress(first + len(part))
    bounds = Bounds(*(torch.cat(values) for values in zip(*parts, strict=True)))
    return Likelihood(bounds, x[0].numel(), normaliser, latents is not None)


@dataclass(frozen=True)
class MeanLikelihood:
    """`Likelihood.figures` of a set of images; a `measure.Measure`. The model is on the CPU."""

    model: LatentModel
    seed: int

    def part(self, images: ImageSet) -> Tensors:
        """The bounds (N,) of images under the prior as if its normaliser were 1."""
        own, total = [], len(images)
        for chunk in images.chunks():
            before = chunk.index * CHUNK_SAMPLES

            def progress(num: int, before: int = before) -> None:
                images.progress(min(before + num, total), total, "images")

            noise = chunk_seed(self.seed, chunk.index)
            found = likelihood(self.model, chunk.images, seed=noise, normaliser=NO_NORMALISER, progress=progress)
            own.append({ROW: rows_of(chunk)} | found.bounds._asdict())
        return stacked(own)

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """The means over all images."""
        normaliser = measure_normaliser(self.model.prior, self.seed)
        whole = {name: in_order(parts, name) for name in Bounds._fields}
        for name in ("importance", "annealed", "upper"):
            whole[name] = whole[name] - normaliser.log_z
        return Likelihood(Bounds(**whole), math.prod(self.model.image_shape), normaliser, exact_start=False).figures


def dequantised(x: Tensor, seed: int) -> Tensor:
    """Bytes (B, C, H, W) as pixels with uniform noise of the width of a level. Pixels are returned unchanged."""
    if x.dtype != torch.uint8:
        return x.float()
    noise = torch.rand(x.shape, generator=torch_generator(seed, "dequantise"))
    return (x.float() + noise - 0.5) / PIXEL_LEVELS - 1


def _of_images(
    model: LatentModel,
    x: Tensor,
    num: int,
    seed: int,
    first: int,
    latents: Tensor | None,
    normaliser: Normaliser,
    settings: Annealing,
) -> Bounds:
    sigma = model.sigma
    copies = x.repeat_interleave(num, dim=0)
    constant = normaliser.log_z + x[0].numel() * math.log(sigma * math.sqrt(2 * math.pi))

    def log_joint(z: Tensor) -> Tensor:
        return model.prior.log_density(z) + log_likelihood(copies, model.networks.generator(z), sigma) - constant

    chains, _ = model.infer(copies, seed + first)
    proposals = fit_proposals(chains.view(len(x), num, -1))
    streams = torch.arange(first, first + len(x)).repeat_interleave(num)
    return marginal(log_joint, proposals, num, seed, streams, settings, latents)


def fit_proposals(z: Tensor) -> Proposals:
    """Gaussians with the moments of draws (B, N, Z). Correlations are shrunk by N / (N + 2 Z)."""
    num, dim = z.shape[1:]
    centred = z - z.mean(1, keepdim=True)
    covariance = centred.mT @ centred / (num - 1)
    diagonal = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2).clamp(min=1e-8))
    kept = num / (num + 2 * dim)
    return Proposals(z.mean(1), torch.linalg.cholesky(kept * covariance + (1 - kept) * diagonal + 1e-6 * diagonal))


def marginal(
    log_joint: Callable[[Tensor], Tensor],
    proposals: Proposals,
    num: int,
    seed: int,
    streams: Tensor,
    settings: Annealing,
    latents: Tensor | None = None,
) -> Bounds:
    """Bounds on the log of the integral of e^log_joint over z, for every image.

    A pilot walk with resampling finds rungs and kernels. The estimates use these with other particles.

    Args:
        log_joint: maps rows (B * N, Z) to (B * N,). The rows of an image are consecutive.
        proposals: density at the start of the walks.
        num: N.
        seed: of the noise.
        streams: (B * N,) the stream of noise of every row.
        settings: of the pilot walk.
        latents: (B, Z) exact posterior samples, if they are known.
    """
    num_images, dim = proposals.mean.shape

    def particles(purpose: str) -> Tensor:
        noise = StreamNoise(seed, f"likelihood-{purpose}", 0, streams).normal(dim)
        return proposals.from_noise(noise.view(num_images, num, dim).to(proposals.mean))

    def noise(purpose: str) -> Callable[[int, int], StreamNoise]:
        return lambda leg, rung: StreamNoise(seed, f"likelihood-{purpose}", 1 + rung, streams)

    leg = Leg(proposals.log_density, lambda z: log_joint(z) - proposals.log_density(z))
    pilot = anneal([leg], particles("pilot"), noise("pilot"), settings)
    weighted_only = replace(settings, resample_below=0.0)
    z = particles("annealed")
    with torch.no_grad():
        importance = importance_estimate(leg.increment(z.flatten(0, 1)).view(num_images, num))
    walked = anneal([leg], z, noise("annealed"), weighted_only, plans=pilot.plans)
    annealed = importance_estimate(_weights(walked.log_weights, walked.log_z))
    placed = StreamNoise(seed, "likelihood-choice", 0, streams).uniform().view(num_images, num)[:, 0]
    chosen = resample_systematically(pilot.log_weights, placed, num)
    exact = pilot.z.gather(1, chosen[:, :, None].expand(-1, -1, dim))
    if latents is not None:
        exact = latents.to(exact)[:, None].expand(-1, num, -1).contiguous()
    plans = [plan.reversed() for plan in pilot.plans]
    down = anneal([leg.reversed()], exact, noise("down"), weighted_only, plans=plans)
    inverse, upper_error = importance_estimate(_weights(down.log_weights, down.log_z))
    return Bounds(*importance, *annealed, -inverse, upper_error)


def _weights(log_weights: Tensor, log_z: Tensor) -> Tensor:
    """Log importance weights (B, N) of a walk without resampling. The mean of the weights is the estimate."""
    return log_weights + math.log(log_weights.shape[1]) + log_z.sum(1, keepdim=True)
