"""Networks of a user's own, by the path of their class: `module:Class`.

The interfaces, with S the shape of a latent and Z its number of coordinates:

    generator       latents (B, *S)     -> samples (B, ...), in [-1, 1] where samples are images
    encoder         samples (B, ...)    -> mean, log_std: (B, *S) each
    ratio network   latents (B, *S)     -> log_ratio (B,)

Inside the package latents are vectors (B, Z); `OfShape` stands between.
"""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ebmscale.errors import ConfigError


class OwnNetworkError(ConfigError):
    """A class of the user's own cannot be found, imported or made."""


def own_class(path: str) -> type[nn.Module]:
    """The class at `module:Class`; its module is found from the working directory, and as any other.

    Raises:
        OwnNetworkError: the module cannot be found or fails when it is imported, or it has no such network.
    """
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise OwnNetworkError(
                f"There is no module {module_name} for {path}; start where {module_name.split('.')[0]}.py lies, "
                "or install it."
            ) from None
        raise OwnNetworkError(
            f"{path} cannot be imported: its module needs {error.name}, which is not installed."
        ) from None
    except BaseException as error:  # the module runs code of the user's
        if isinstance(error, KeyboardInterrupt):
            raise
        raise OwnNetworkError(f"{path} cannot be imported: {type(error).__name__}: {one_line(error)}") from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        known = [one for one, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
        hint = f"it has {', '.join(known)}" if known else "it has no torch.nn.Module"
        raise OwnNetworkError(f"The module {module_name} has no network {name}; {hint}.")
    return found


def source_sha256(path: str) -> str | None:
    """The digest of the file that defines a class; None where it has no file."""
    try:
        file = inspect.getsourcefile(own_class(path))
    except TypeError:
        return None
    return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()


def own_network(path: str, args: Mapping[str, Any], seed: int) -> nn.Module:
    """A network of a user's own class, on the CPU in float32; its random weights come from the seed alone.

    Raises:
        OwnNetworkError: as `own_class`, or the class does not take these arguments.
    """
    kind = own_class(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = kind(**args)
        except Exception as error:  # its constructor is the user's
            given = ", ".join(f"{name}={value!r}" for name, value in args.items())
            raise OwnNetworkError(
                f"{path} cannot be made with ({given}): {type(error).__name__}: {one_line(error)}"
            ) from error
    return network.float()


class OfShape(nn.Module):
    """A network of a user's own that takes latents of shape S, for callers whose latents are vectors (..., Z).

    Args:
        network: maps latents (B, *S) to (B, ...).
        latent_shape: S.
    """

    def __init__(self, network: nn.Module, latent_shape: Sequence[int]):
        super().__init__()
        self.network = network
        self.latent_shape = tuple(latent_shape)

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (B, Z) to what the network makes of them."""
        out: Tensor = self.network(z.reshape(-1, *self.latent_shape))
        return out


class OwnRatio(OfShape):
    """A ratio network of a user's own: latents (..., Z) to (...)."""

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents (..., Z) to log_ratio (...)."""
        return super().forward(z).reshape(z.shape[:-1])


class FlatPosterior(nn.Module):
    """An encoder of a user's own, whose mean and log_std become vectors (B, Z)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log_std (B, Z) of samples x (B, ...)."""
        mean, log_std = self.network(x)
        return mean.flatten(1), log_std.flatten(1)


def freeze(network: nn.Module) -> nn.Module:
    """Turns the parameters of a network into buffers: constants, which an engine keeps and does not train."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            del module._parameters[name]
            module.register_buffer(name, parameter.detach())
    return network.eval()


def one_line(error: BaseException) -> str:
    """The message of an error on one line."""
    return " ".join(str(error).split())[:300]
