"""Reports what this machine can do, what is missing, and how to install it."""

import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import NamedTuple

import torch

from ebmscale.kernels.rate import bf16_gain
from ebmscale.runtime.ray_access import MODE, TOKEN, TOKEN_PATH, exposed_file, token_place


class Check(NamedTuple):
    """One line of the doctor; `ok` is None if an optional part is absent."""

    what: str
    ok: bool | None
    detail: str


def examine() -> Iterator[Check]:
    """Checks the interpreter, the processor, the devices and the optional packages."""
    yield Check("python", True, f"{platform.python_version()} on {platform.machine()}")
    yield Check("torch", True, torch.__version__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield Check(
        "processor", True, f"{cores} cores, {memory:.0f} GB of memory, threads of torch: {torch.get_num_threads()}"
    )
    gain = bf16_gain(torch.device("cpu"))
    faster = f"products are {gain:.2g} times as fast as in fp32"
    yield Check(
        "bf16 on CPU", gain > 1 or None, faster if gain > 1 else f"{faster}: use precision=fp32 here, which is faster"
    )
    yield _cuda()
    yield _package("deepspeed", "engine=deepspeed", "pip install deepspeed")
    yield _package("ray", "cluster runs and searches", "pip install 'ebmscale[cluster]'")
    yield _ray_token()
    yield _package("s3fs", "s3:// storage", "pip install s3fs")
    yield _package("tensorboardX", "TensorBoard files", "pip install tensorboardX")


def _cuda() -> Check:
    if not torch.cuda.is_available():
        return Check("CUDA", None, "no device: runs use the CPU")
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return Check("CUDA", True, names)


def _package(name: str, purpose: str, how: str) -> Check:
    if _has(name):
        return Check(name, True, f"{metadata.version(name)}, for {purpose}")
    return Check(name, None, f"missing, needed for {purpose}: {how}")


def _ray_token() -> Check:
    """Reports where the token is that a cluster asks for, and whether others can read it."""
    place, exposed = token_place(), exposed_file()
    if place is None:
        return Check(
            "Ray's token", None, f"none: set {TOKEN_PATH} or {TOKEN} for a cluster that asks for one; a Ray on this "
            "machine makes its own token",
        )  # fmt: skip
    if exposed is not None:
        return Check("Ray's token", False, f"others on this machine can read {exposed}: chmod 600 {exposed}")
    off = f", but {MODE}={os.environ[MODE]} switches it off" if os.environ.get(MODE, "token") != "token" else ""
    return Check("Ray's token", not off or None, f"in {place}{off}")


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
