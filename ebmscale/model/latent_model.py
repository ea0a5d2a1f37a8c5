"""A trained model as a value: the generator with its multi-stage prior, opened from a run or from an export.

This file needs neither DeepSpeed nor Ray. Shapes: B batch, N samples, Z latent, C H W image, K stages.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ebmscale.config import RunConfig
from ebmscale.density.langevin import ChainTrace
from ebmscale.density.path import Normaliser
from ebmscale.density.prior import Base, RatioSequence
from ebmscale.errors import ConfigError, DamagedError, StorageError
from ebmscale.kernels.prior_chain import run_prior_chain
from ebmscale.model.anomaly_score import BACKGROUND_WIDTH, AnomalyScore
from ebmscale.model.build import build_live_networks, build_model, build_on_meta, build_ratio_network
from ebmscale.model.checkpoint import AVERAGE, SavedCheckpoint
from ebmscale.model.checkpoint_reader import CheckpointReader
from ebmscale.model.export import ABOUT_FILE, NETWORKS, RATIOS, read_export, write_export
from ebmscale.model.image_model import ImageModel
from ebmscale.model.normaliser import measure_normaliser
from ebmscale.model.pieces import check_fit, shapes_of, whole_spans
from ebmscale.model.posterior import langevin_settings, log_likelihood, sample_posterior
from ebmscale.model.prior_base import BASE, base_from, check_base
from ebmscale.model.residuals import Residuals
from ebmscale.model.run_folder import load_run_config
from ebmscale.model.sampler import draw_density
from ebmscale.networks import ImageShape
from ebmscale.seeds import StreamNoise
from ebmscale.storage import Storage

ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class LatentModel:
    """p(x, z) = p_K(z) N(x; G(z), sigma^2 I), with images in [-1, 1].

    Its methods compute on `device`, accept tensors on any device and return tensors on the CPU. Random numbers are
    drawn on the CPU, so they are the same on every device.

    Attributes:
        config: of the run that trained it.
        networks: the generator, and the encoder if the run has one.
        prior: the ratio sequence.
        image_shape: (C, H, W).
        samples_seen: samples of training.
        residuals: statistics of reconstruction errors on held-out images, if they were measured.

    Example:
        >>> model = ebmscale.load("runs/digits")
        >>> x = model.sample(64)  # (64, C, H, W) in [-1, 1]
        >>> z = model.infer(x)[0]  # (64, Z)
        >>> model.log_prior(z).shape  # in nats, up to log Z_K
        torch.Size([64])
    """

    config: RunConfig
    networks: ImageModel
    prior: RatioSequence
    image_shape: ImageShape
    samples_seen: int
    residuals: Residuals | None = None

    @property
    def device(self) -> torch.device:
        """The device of networks and prior."""
        return next(self.networks.parameters()).device

    def to(self, device: torch.device | str) -> "LatentModel":
        """The same model on another device."""
        if torch.device(device) == self.device:
            return self
        return replace(self, networks=copy.deepcopy(self.networks).to(device), prior=self.prior.to(device))

    def at_stage(self, stage: int) -> "LatentModel":
        """The model with the prior p_k after its first k = `stage` stages.

        Raises:
            ConfigError: the prior has fewer stages.
        """
        if stage > self.prior.num_stages:
            raise ConfigError(f"Stage {stage} is beyond the {self.prior.num_stages} stages that the run has.")
        return replace(self, prior=self.prior.prefix(stage))

    def sample(self, num: int, seed: int = 0, num_stages: int | None = None) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] from the prior p_K, or from p_k with k = `num_stages`."""
        return self.decode(self.sample_prior(num, seed, num_stages))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The generator's images (N, C, H, W) at latents (N, Z)."""
        return torch.cat([self.networks.generator(part.to(self.device)).cpu() for part in z.split(ROWS_AT_ONCE)])

    def sample_prior(self, num: int, seed: int = 0, num_stages: int | None = None) -> Tensor:
        """Latents (N, Z) from the prior p_K, or from p_k with k = `num_stages`.

        A prior that was learned on samples of its density is drawn by `model.sampler.draw_density`. One that was
        learned on chains is what such chains draw.
        """
        if not self.config.uses_density:
            return self.sample_chains(num, seed, num_stages)[0]
        prior = self.prior if num_stages is None else self.prior.prefix(num_stages)
        return draw_density(prior.to("cpu"), num, seed).z

    def sample_chains(self, num: int, seed: int = 0, num_stages: int | None = None) -> tuple[Tensor, list[ChainTrace]]:
        """Latents (N, Z) from the prior by Langevin chains, and the trace of the chains at every stage.

        A chain starts from an exact draw of p_0 and passes through p_1, ..., p_K, with `prior.sample_steps` steps each.
        """
        prior = self.prior if num_stages is None else self.prior.prefix(num_stages)
        noise = _noise(seed, "sample-prior", num)
        settings = langevin_settings(self.config.prior, self.config.prior.sample_steps)
        z, traces = prior.base.from_noise(noise.normal(prior.base.dim).to(self.device)), []
        for stage in range(1, prior.num_stages + 1):
            steps = noise.normal(settings.num_steps, prior.base.dim).to(self.device)
            z, trace = run_prior_chain(prior.prefix(stage), z, steps, settings)
            traces.append(_on_cpu(trace))
        return z.cpu(), traces

    def infer(self, x: Tensor, seed: int = 0, at_mean: bool = False) -> tuple[Tensor, ChainTrace]:
        """Posterior latents (B, Z) of images by the chain of the run, and the trace of the first `ROWS_AT_ONCE` images.

        Args:
            x: (B, C, H, W) in [-1, 1].
            seed: of the noise.
            at_mean: start at the mean of the encoder, if there is one, and not at a draw from it.
        """
        settings = langevin_settings(self.config.posterior)
        dim, sigma = self.prior.base.dim, self.config.model.sigma
        parts = []
        for index, part in enumerate(x.split(ROWS_AT_ONCE)):
            noise = _noise(seed, f"infer-{index}", len(part))
            first, steps = noise.normal(dim), noise.normal(settings.num_steps, dim)
            if at_mean and self.networks.encoder is not None:
                first = torch.zeros_like(first)
            rows, first, steps = (tensor.to(self.device) for tensor in (part, first, steps))
            parts.append(sample_posterior(self.networks, sigma, self.prior, rows, first, steps, settings, scored=False))
        return torch.cat([part.z.cpu() for part in parts]), _on_cpu(parts[0].trace)

    def reconstruct(self, x: Tensor, seed: int = 0) -> Tensor:
        """G(z) at posterior latents z of images x (B, C, H, W)."""
        return self.decode(self.infer(x, seed)[0])

    @torch.no_grad()
    def log_prior(self, z: Tensor, normaliser: Normaliser | None = None) -> Tensor:
        """log p_K(z) (N,) in nats at z (N, Z): normalised if `normaliser` is given, else up to the constant log Z_K."""
        return self.prior.log_density(z.to(self.device)).cpu() - (normaliser.log_z if normaliser is not None else 0.0)

    def log_normaliser(self, seed: int = 0) -> Normaliser:
        """log Z_K with its standard error, by sequential Monte Carlo along the stages."""
        return measure_normaliser(self.prior, seed)

    @torch.no_grad()
    def score(self, x: Tensor, seed: int = 0) -> AnomalyScore:
        """Anomaly scores of images x (B, C, H, W) in [-1, 1] at their posterior latents."""
        z = self.infer(x, seed, at_mean=True)[0]
        mean = self.decode(z)
        reconstruction = -log_likelihood(x, mean, self.config.model.sigma)
        prior = -self.log_prior(z)
        ratio = prior - 0.5 * (self.prior.coordinates(z.to(self.device)) / BACKGROUND_WIDTH).square().sum(1).cpu()
        balanced = prior + (self.residuals.energy(x, mean) if self.residuals is not None else reconstruction)
        return AnomalyScore(reconstruction + prior, reconstruction, prior, ratio, balanced)

    def export(self, storage: Storage) -> None:
        """Writes `model.safetensors` and `model.json` with checksums. `load` opens them.

        Raises:
            StorageError: the storage fails.
        """
        tensors = {f"{NETWORKS}{name}": tensor for name, tensor in self.networks.state_dict().items()}
        tensors |= {f"{RATIOS}{name}": tensor for name, tensor in self.prior.weights.items()}
        tensors |= {f"{BASE}{name}": tensor for name, tensor in self.prior.base.tensors().items()}
        about = {
            "samples_seen": self.samples_seen,
            "num_stages": self.prior.num_stages,
            "image_shape": self.image_shape,
            "residuals": asdict(self.residuals) if self.residuals is not None else None,
            "config": self.config.model_dump(mode="json"),
        }
        write_export(storage, about, tensors)


def load(url: str) -> LatentModel:
    """Opens the newest valid checkpoint of a run, or an export, on the CPU.

    Args:
        url: a folder, or any address that fsspec reads, such as `s3://bucket/runs/digits`.

    Raises:
        ConfigError: there is no run at the address.
        StorageError: it has no valid checkpoint, or the export is damaged.

    Example:
        >>> ebmscale.load("runs/digits").sample(64).shape
        torch.Size([64, 1, 8, 8])
    """
    return open_model(Storage.at(url))


def open_model(storage: Storage) -> LatentModel:
    """Opens the newest valid checkpoint of a run, or an export, on the CPU.

    Raises:
        ConfigError: there is no run in this storage.
        StorageError: it has no valid checkpoint, or the export is damaged.
    """
    return _load_export(storage) if storage.exists(ABOUT_FILE) else _load_run(storage)


def _load_run(storage: Storage) -> LatentModel:
    config, store = load_run_config(storage), CheckpointReader(storage)
    model = store.newest(lambda saved: from_checkpoint(config, saved))
    if model is None and store.damaged:
        raise StorageError(
            f"The run {storage.url} has no valid checkpoint left, every one is damaged; `ebmscale inspect "
            f"{storage.url}` shows how."
        )
    if model is None:
        raise StorageError(f"The run {storage.url} has no valid checkpoint yet; train it first.")
    return model


def from_checkpoint(config: RunConfig, saved: SavedCheckpoint) -> LatentModel:
    """The model in a checkpoint, with averaged weights if the run has them. The state of the optimisers is not read.

    Raises:
        ConfigError: there is no architecture for images of that shape.
        DamagedError: the checkpoint is damaged, is not of this configuration, or holds weights that are not finite.
    """
    state = saved.state()
    networks, ratio = build_on_meta(config, state.image_shape)
    ratio_shapes = shapes_of(ratio.state_dict())
    if config.train.generator.ema_samples:
        weights = _read(saved, AVERAGE, "", shapes_of(networks.state_dict()))
    else:
        weights = _read(saved, "generator", "weights/", shapes_of(networks.state_dict()))
    if config.num_live:
        if config.num_live > len(saved.shapes("ratio")):
            raise DamagedError(f"Checkpoint {saved.name} has fewer ratios than the {config.num_live} configured.")
        live = {f"nets.{k}.{name}": size for k in range(config.num_live) for name, size in ratio_shapes.items()}
        ratios = build_live_networks(config).stacked(_read(saved, "ratio", "weights/", live))
    else:
        frozen = saved.ratios()
        for one in frozen:
            check_fit(shapes_of(one), ratio_shapes, f"a frozen ratio of checkpoint {saved.name}")
        ratios = {name: torch.stack([one[name] for one in frozen]) for name in (frozen[0] if frozen else ())}
    kept: dict[str, Tensor] = {}
    if config.prior.base == "moments":
        shapes = {name.removeprefix(BASE): s for name, s in saved.shapes("chains").items() if name.startswith(BASE)}
        check_base(config.model.latent_dim, shapes)
        kept = _read(saved, "chains", BASE, shapes)
    base = base_from(config.model.latent_dim, kept)
    model = _assemble(config, state.image_shape, saved.samples_seen, weights, base, ratios)
    return replace(model, residuals=state.residuals)


def _read(saved: SavedCheckpoint, stem: str, prefix: str, expected: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The whole tensors of a stem whose names begin with a prefix, by their names without the prefix."""
    shapes = {name: size for name, size in saved.shapes(stem).items() if name.startswith(prefix)}
    own = {name.removeprefix(prefix): size for name, size in shapes.items()}
    check_fit(own, expected, f"{stem} of checkpoint {saved.name}")
    flat = {span.name: values for span, values in saved.read(stem, whole_spans(shapes)).items()}
    return {name.removeprefix(prefix): flat[name].view(size) for name, size in shapes.items()}


def _load_export(storage: Storage) -> LatentModel:
    about, config, tensors = read_export(storage)
    networks, ratios, kept = (_below(tensors, prefix) for prefix in (NETWORKS, RATIOS, BASE))
    base = base_from(config.model.latent_dim, kept)
    model = _assemble(config, about.image_shape, about.samples_seen, networks, base, ratios)
    return replace(model, residuals=about.residuals)


def _assemble(
    config: RunConfig,
    shape: ImageShape,
    samples_seen: int,
    networks: dict[str, Tensor],
    base: Base,
    ratios: dict[str, Tensor],
) -> LatentModel:
    model = build_model(config, shape)
    model.load_state_dict(networks)
    model.requires_grad_(False)
    prior = RatioSequence(base, build_ratio_network(config), ratios)
    return LatentModel(config, model, prior, shape, samples_seen)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _on_cpu(trace: ChainTrace) -> ChainTrace:
    return ChainTrace(*(values.cpu() for values in trace))


def _noise(seed: int, purpose: str, num_rows: int) -> StreamNoise:
    return StreamNoise(seed, purpose, 0, [0] * num_rows)
