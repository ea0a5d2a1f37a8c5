"""Samples of a model with two layers of latents that share the upper layer.

Shapes: N samples, M variants of each, Z latent, T coordinates of the upper layer.
"""

import torch
from torch import Tensor

from ebmscale.density.langevin import run_chain, start
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.posterior import langevin_settings
from ebmscale.seeds import StreamNoise


@torch.no_grad()
def samples_by_layer(model: LatentModel, u: Tensor, num: int, seed: int = 0) -> Tensor:
    """Latents (N * M, Z) with the upper layers of u (N, Z), and lower layers drawn anew given these.

    The first of the M variants of a sample is the sample itself. The lower layer of another one starts as that of
    another sample. Then a Langevin chain of p_K moves it, of `prior.sample_steps` steps, while the upper layer stays.

    Args:
        model: with `model.generator.top` above 0.
        u: samples of the prior.
        num: M.
        seed: of the noise.
    """
    top = model.config.model.generator.top
    variants = torch.stack([torch.cat([u[:, :top], u.roll(shift, 0)[:, top:]], dim=1) for shift in range(num)], dim=1)
    z = variants.flatten(0, 1).to(model.device)
    settings = langevin_settings(model.config.prior, model.config.prior.sample_steps)
    steps = StreamNoise(seed, "samples-by-layer", 0, [0] * len(z)).normal(settings.num_steps, z.shape[1]).to(z)
    steps[:, :, :top] = 0

    def lower(z: Tensor) -> tuple[Tensor, Tensor]:
        log_density, score = model.prior.evaluate(z)
        return log_density, torch.cat([torch.zeros_like(score[:, :top]), score[:, top:]], dim=1)

    moved = run_chain(lower, start(lower, z), steps, settings, evaluate_end=False)[0].z
    moved = moved.cpu().unflatten(0, (len(u), num))
    moved[:, 0] = u
    return moved.flatten(0, 1)
