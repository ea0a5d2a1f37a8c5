"""A trained model: the generator with its multi-stage prior, opened from a run or from an export.

This file needs neither DeepSpeed nor Ray. Shapes: B batch, N samples, Z latent, C H W image, K stages.
"""

import copy
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.density.langevin import ChainTrace
from ebmscale.density.path import Normaliser
from ebmscale.density.prior import RatioSequence
from ebmscale.errors import ConfigError
from ebmscale.model.anomaly_score import BACKGROUND_WIDTH, AnomalyScore
from ebmscale.model.export import NETWORKS, RATIOS, write_export
from ebmscale.model.image_model import ImageModel
from ebmscale.model.inputs import check_count, images_of, latents_of, samples_of
from ebmscale.model.noise_level import learned_sigma
from ebmscale.model.normaliser import measure_normaliser
from ebmscale.model.pixels import shows_images
from ebmscale.model.posterior import langevin_settings, log_likelihood, sample_posterior
from ebmscale.model.prior_base import BASE
from ebmscale.model.prior_samples import on_cpu, sample_stage_by_stage
from ebmscale.model.residuals import Residuals
from ebmscale.model.sampler import draw_density
from ebmscale.networks import GivenGenerator, weight_of
from ebmscale.seeds import StreamNoise
from ebmscale.storage import Storage

ROWS_AT_ONCE = 500


@dataclass(frozen=True, repr=False)
class LatentModel:
    """p(x, z) = p_K(z) N(x; G(z), sigma^2 I), with images in [-1, 1].

    Its methods compute on `device`. Images are tensors or arrays (B, C, H, W): uint8, or floats in [-1, 1]. Latents are
    tensors or arrays (N, Z). Anything else raises a `ConfigError`. Results are float32 tensors on the CPU. Random
    numbers are drawn on the CPU, so they are the same on every device.

    A model of given latents (`is_given`) is p_K alone. Its samples x are latents as they were given, of the shape
    `sample_shape`; z are the same latents standardised, as vectors.

    Attributes:
        config: the configuration of the run that trained it.
        networks: the generator, and the encoder if the run has one.
        prior: the ratio sequence.
        image_shape: (C, H, W).
        samples_seen: number of samples that it was trained on.
        residuals: statistics of reconstruction errors on held-out images, if they were measured.
        mean_square: mean squared residual of a pixel in training, if sigma is learned.

    Example:
        >>> model = ebmscale.load("runs/digits")
        >>> x = model.sample(64, seed=1)  # (64, C, H, W) in [-1, 1]
        >>> z = model.encode(x)  # (64, Z)
        >>> model.log_prior(z, model.log_normaliser()).shape  # in nats
        torch.Size([64])
    """

    config: RunConfig
    networks: ImageModel
    prior: RatioSequence
    image_shape: tuple[int, ...]
    samples_seen: int
    residuals: Residuals | None = None
    mean_square: float | None = None

    @property
    def sigma(self) -> float:
        """The standard deviation of p(x | z)."""
        setting = self.config.model.sigma
        return learned_sigma(self.mean_square) if setting == "auto" else setting

    @property
    def is_given(self) -> bool:
        """Whether samples are latents that were given as data."""
        return self.config.model.is_identity

    @property
    def shows_images(self) -> bool:
        """Whether samples are pictures."""
        return shows_images(self.config, self.image_shape)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of a sample; of given latents that of a latent, also where posteriors were given."""
        generator = self.networks.generator
        return generator.latent_shape if isinstance(generator, GivenGenerator) else self.image_shape

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.sample_shape))
        what = "images" if self.shows_images else "samples"
        return (
            f"LatentModel({self.config.run.name!r}: {what} {shape}, latents {self.prior.base.dim}, "
            f"{self.prior.num_stages} stage(s), {self.samples_seen:,} samples seen, on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """The device of networks and prior."""
        return weight_of(self.networks).device

    def to(self, device: torch.device | str) -> "LatentModel":
        """The same model on another device."""
        if torch.device(device) == self.device:
            return self
        return replace(self, networks=copy.deepcopy(self.networks).to(device), prior=self.prior.to(device))

    def at_stage(self, stage: int) -> "LatentModel":
        """The model with the prior p_k after its first k = `stage` stages; 0 is the base p_0.

        Raises:
            ConfigError: the prior has fewer stages.

        Example:
            >>> model.at_stage(0).sample(16).shape
            torch.Size([16, 1, 8, 8])
        """
        if not 0 <= stage <= self.prior.num_stages:
            raise ConfigError(f"Stage {stage} is beyond the {self.prior.num_stages} stages that the run has.")
        return replace(self, prior=self.prior.prefix(stage))

    def sample(self, num: int, seed: int = 0, num_stages: int | None = None) -> Tensor:
        """Draws images (N, C, H, W) in [-1, 1] from the model.

        Args:
            num: N.
            seed: seed of the noise; the same seed gives the same images.
            num_stages: k, for images from p_k instead of p_K.

        Raises:
            ConfigError: `num` is not a whole number above 0, or the prior has fewer stages.

        Example:
            >>> model.sample(64, seed=1).shape
            torch.Size([64, 1, 8, 8])
        """
        return self.decode(self.sample_prior(num, seed, num_stages))

    @torch.no_grad()
    def decode(self, z: Any) -> Tensor:
        """The generator's images (N, C, H, W) in [-1, 1] at latents z (N, Z).

        Example:
            >>> model.decode(np.zeros((2, 16))).shape
            torch.Size([2, 1, 8, 8])
        """
        z = latents_of(z, self.prior.base.dim)
        return torch.cat([self.networks.generator(part.to(self.device)).cpu() for part in z.split(ROWS_AT_ONCE)])

    def sample_prior(self, num: int, seed: int = 0, num_stages: int | None = None) -> Tensor:
        """Latents (N, Z) from the prior p_K, or from p_k with k = `num_stages`.

        If the ratios were learned on samples of the density, `model.sampler.draw_density` draws the latents. If they
        were learned on chains, chains of the same kind draw them. The arguments are those of `sample`.
        """
        if not self.config.uses_density:
            return self.sample_chains(num, seed, num_stages)[0]
        check_count(num, seed)
        prior = self.prior if num_stages is None else self.at_stage(num_stages).prior
        return draw_density(prior.to("cpu"), num, seed).z

    def sample_chains(self, num: int, seed: int = 0, num_stages: int | None = None) -> tuple[Tensor, list[ChainTrace]]:
        """Latents (N, Z) from the prior by Langevin chains, and the trace of the chains at every stage.

        The arguments are those of `sample`. At every stage a chain makes `prior.sample_steps` steps.
        """
        check_count(num, seed)
        prior = self.prior if num_stages is None else self.at_stage(num_stages).prior
        noise = StreamNoise(seed, "sample-prior", 0, [0] * num)
        settings = langevin_settings(self.config.prior, self.config.prior.sample_steps)
        return sample_stage_by_stage(prior, noise, settings, self.device)

    def encode(self, x: Any, seed: int = 0) -> Tensor:
        """Posterior latents (B, Z) of images x (B, C, H, W), a draw for each: uint8, or floats in [-1, 1].

        Example:
            >>> model.encode(np.zeros((3, 1, 8, 8), dtype=np.uint8)).shape
            torch.Size([3, 16])
        """
        return self.infer(x, seed)[0]

    def infer(self, x: Any, seed: int = 0, at_mean: bool = False) -> tuple[Tensor, ChainTrace]:
        """Posterior latents (B, Z) of images by the chain of the run, and the trace of the first `ROWS_AT_ONCE` images.

        Args:
            x: (B, C, H, W), uint8 or floats in [-1, 1].
            seed: of the noise.
            at_mean: start at the mean of the encoder, if there is one, and not at a draw from it.
        """
        check_count(1, seed)
        settings = langevin_settings(self.config.posterior)
        dim = self.prior.base.dim
        parts = []
        for index, part in enumerate(self.inputs(x).split(ROWS_AT_ONCE)):
            noise = StreamNoise(seed, f"infer-{index}", 0, [0] * len(part))
            first, steps = noise.normal(dim), noise.normal(settings.num_steps, dim)
            if at_mean and self.networks.encoder is not None:
                first = torch.zeros_like(first)
            rows, first, steps = (tensor.to(self.device) for tensor in (part, first, steps))
            parts.append(
                sample_posterior(self.networks, self.sigma, self.prior, rows, first, steps, settings, scored=False)
            )
        return torch.cat([part.z.cpu() for part in parts]), on_cpu(parts[0].trace)

    @torch.no_grad()
    def posterior(self, x: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, Z) of the encoder's posteriors of samples x (B, ...).

        Raises:
            ConfigError: the model has no encoder.
        """
        encoder = self.networks.encoder
        if encoder is None:
            raise ConfigError("The model has no encoder; use `encode` to draw posterior latents by chains.")
        found = [encoder(part.to(self.device)) for part in self.inputs(x).split(ROWS_AT_ONCE)]
        return torch.cat([mean.cpu() for mean, _ in found]), torch.cat([log_std.exp().cpu() for _, log_std in found])

    def inputs(self, x: Any) -> Tensor:
        """Samples as the networks take them, float32 (B, ...).

        Raises:
            ConfigError: the shape or the values are wrong; the message says how to change them.
        """
        if self.shows_images and self.config.model.generator.class_path is None:
            return images_of(x, self.image_shape)
        if isinstance(x, Tensor | np.ndarray) and x.dtype in (torch.uint8, np.uint8) and self.shows_images:
            return images_of(x, self.image_shape)
        shapes = [self.sample_shape]
        return samples_of(x, [*shapes, (2, *self.sample_shape)] if self.is_given else shapes)

    def reconstruct(self, x: Any, seed: int = 0) -> Tensor:
        """G(z) (B, C, H, W) in [-1, 1] at posterior latents z of images x (B, C, H, W)."""
        return self.decode(self.encode(x, seed))

    @torch.no_grad()
    def log_prior(self, z: Any, normaliser: Normaliser | None = None) -> Tensor:
        """log p_K(z) (N,) in nats at z (N, Z): normalised if `normaliser` is given, else up to the constant log Z_K."""
        z = latents_of(z, self.prior.base.dim)
        return self.prior.log_density(z.to(self.device)).cpu() - (normaliser.log_z if normaliser is not None else 0.0)

    @torch.no_grad()
    def log_density(self, x: Any, normaliser: Normaliser) -> Tensor:
        """log p_K (N,) in nats of given latents x (N, *S), as a normalised density of x itself.

        Of posteriors (N, 2, *S) it is that of their means.

        Raises:
            ConfigError: the model has a generator, so its density of x is an integral: see `ebmscale evaluate`.
        """
        generator = self.networks.generator
        if not isinstance(generator, GivenGenerator):
            raise ConfigError("log_density is for models of given latents; `ebmscale evaluate` bounds that of images.")
        values = self.inputs(x)
        points = values if tuple(values.shape[1:]) == self.sample_shape else values[:, 0]
        z = (points.flatten(1).to(self.device) - generator.shift) / generator.scale
        return self.log_prior(z.cpu(), normaliser) - generator.scale.log().sum().cpu()

    def log_normaliser(self, seed: int = 0) -> Normaliser:
        """log Z_K in nats with its standard error, by sequential Monte Carlo along the stages."""
        return measure_normaliser(self.prior, seed)

    @torch.no_grad()
    def score(self, x: Any, seed: int = 0) -> AnomalyScore:
        """Anomaly scores (B,) in nats of images x (B, C, H, W) at their posterior latents; higher means less likely.

        Example:
            >>> model.score(np.zeros((3, 1, 8, 8), dtype=np.uint8)).joint.shape
            torch.Size([3])
        """
        x = self.inputs(x).cpu()
        z = self.infer(x, seed, at_mean=True)[0]
        mean = None if self.is_given else self.decode(z)
        reconstruction = torch.zeros(len(x)) if mean is None else -log_likelihood(x, mean, self.sigma)
        prior = -self.log_prior(z)
        ratio = prior - 0.5 * (self.prior.coordinates(z.to(self.device)) / BACKGROUND_WIDTH).square().sum(1).cpu()
        energy = reconstruction
        if self.residuals is not None and mean is not None:
            energy = self.residuals.energy(x, mean)
        return AnomalyScore(reconstruction + prior, reconstruction, prior, ratio, prior + energy)

    def export(self, storage: Storage) -> None:
        """Writes `model.safetensors` and `model.json` with checksums. `load` opens them.

        Raises:
            StorageError: the storage fails.
        """
        tensors = {f"{NETWORKS}{name}": tensor for name, tensor in self.networks.state_dict().items()}
        tensors |= {f"{RATIOS}{name}": tensor for name, tensor in self.prior.tensors.items()}
        tensors |= {f"{BASE}{name}": tensor for name, tensor in self.prior.base.tensors().items()}
        about = {
            "samples_seen": self.samples_seen,
            "num_stages": self.prior.num_stages,
            "image_shape": self.image_shape,
            "residuals": asdict(self.residuals) if self.residuals is not None else None,
            "mean_square": self.mean_square,
            "config": self.config.model_dump(mode="json"),
        }
        write_export(storage, about, tensors)
