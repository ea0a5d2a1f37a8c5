"""The world as a value: which rank this process is, of how many, on which device, and the few reductions in use."""

import atexit
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ebmscale.errors import ConfigError
from ebmscale.rendezvous import join, local_rank, rank_and_size

LEAVING_S = 0.05
"""How long the interpreter's lock is released at the end: gloo's threads need it to free the last tensors."""


def leave_group() -> None:
    """Leaves the process group before the interpreter ends; without this NCCL prints a warning.

    Groups that DeepSpeed still refers to outlive `destroy_process_group`. Their gloo threads ask for the interpreter's
    lock, and if the interpreter is ending, that aborts a process whose work is done. So they get the lock before.
    """
    if not dist.is_initialized():
        return
    is_gloo = dist.get_backend() == "gloo"
    dist.destroy_process_group()
    if is_gloo:
        time.sleep(LEAVING_S)


def device_of(name: str = "auto") -> torch.device:
    """The device of this process: of several GPUs the one of number LOCAL_RANK modulo their count.

    Args:
        name: `auto` (CUDA when present), `cpu` or `cuda`.

    Raises:
        ConfigError: there is no such name, CUDA was asked for and is not there, or LOCAL_RANK is not a number.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"There is no device {name!r}; use auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda but this machine has no CUDA device; use device=cpu or device=auto.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place = torch.device("cuda", local_rank(os.environ) % torch.cuda.device_count())
    torch.cuda.set_device(place)
    return place


@dataclass(frozen=True)
class World:
    """One process's place in a run.

    Attributes:
        rank: this process, 0 <= rank < size.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def alone(cls, device: str = "cpu") -> "World":
        """The world of a single process."""
        return cls(0, 1, torch.device(device))

    @classmethod
    def from_environment(cls, device: str = "auto") -> "World":
        """Reads RANK, WORLD_SIZE and LOCAL_RANK (as torchrun sets them); joins the process group if there are several.

        Args:
            device: `auto` (CUDA when present), `cpu` or `cuda`.

        Raises:
            ConfigError: CUDA was asked for and is not there; the variables do not describe a rank.
            WorkersLostError: the other ranks did not join.
        """
        place, on = rank_and_size(os.environ), device_of(device)
        if place.size > 1 and not dist.is_initialized():
            join(place, "nccl" if on.type == "cuda" else "gloo")
            if on.type != "cuda":
                atexit.register(leave_group)
        return cls(*place, on)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks (on every rank); `value` itself is left alone."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: one decision for all."""
        if self.size == 1:
            return flag
        count = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        return bool(count > 0)

    def gather(self, value: Tensor) -> list[Tensor]:
        """Every rank's tensor, in order of rank, on every rank. First dimensions may differ."""
        if self.size == 1:
            return [value]
        return [torch.as_tensor(part) for part in self.gather_objects(value.cpu())]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's small Python value, in order of rank, on every rank."""
        if self.size == 1:
            return [value]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, value)
        return parts

    def broadcast(self, value: Any) -> Any:
        """Rank 0's small Python value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Waits until every rank is here."""
        if self.size > 1:
            dist.barrier()


def owned_rows(num_rows: int, num_streams: int, world: World) -> Tensor:
    """The rows of a global batch that this rank owns when row i belongs to stream i mod S, (B,) int64."""
    rows = torch.arange(num_rows)
    return rows[rows % num_streams % world.size == world.rank]
