"""Gradients and buffers across ranks: averages, clipping, and copies of those of rank 0."""

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ebmscale.world import World


def average_(gradients: list[Tensor], world: World) -> None:
    """Replaces fp32 gradients by their averages over ranks, with one all-reduce."""
    if world.size == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world.size
    _scatter_flat(flat, gradients)


def clip_(gradients: list[Tensor], clip_norm: float | None) -> float:
    """Scales gradients down to the global norm `clip_norm` in place; returns the global norm before."""
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients])).item()
    if clip_norm is not None and norm > clip_norm and math.isfinite(norm):
        for gradient in gradients:
            gradient.mul_(clip_norm / (norm + 1e-6))
    return norm


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor], world: World) -> None:
    """Overwrites floating tensors of one type by those of rank 0, with one broadcast."""
    tensors = list(tensors)
    if world.size == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.broadcast(flat, src=0)
    _scatter_flat(flat, tensors)


def copy_buffers_from_first(module: nn.Module, world: World) -> None:
    """Overwrites floating buffers (batch statistics) by those of rank 0, as DistributedDataParallel does."""
    copy_from_first((buffer for buffer in module.buffers() if buffer.is_floating_point()), world)


def _scatter_flat(flat: Tensor, tensors: list[Tensor]) -> None:
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
