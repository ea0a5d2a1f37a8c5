"""What people give to a model: images and latents as tensors or arrays, brought to one form or refused in a sentence.

Shapes: B images, N latents, C H W image, Z latent.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ebmscale.errors import ConfigError
from ebmscale.model.pixels import to_pixels

MARGIN = 2.0  # of pixels around [-1, 1]: images with the noise of p(x | z) lie there


def images_of(x: Any, shape: tuple[int, ...]) -> Tensor:
    """Images as float32 pixels (B, C, H, W) in [-1, 1].

    Args:
        x: a tensor or an array (B, C, H, W) of whole numbers from 0 to 255 (uint8), or of floats in [-1, 1].
        shape: (C, H, W) of the images that the model makes.

    Raises:
        ConfigError: the shape or the values are others; the sentence says how to change them.
    """
    values = _tensor(x, "images")
    wanted = f"(B, {', '.join(map(str, shape))})"
    if tuple(values.shape[1:]) != shape or values.ndim != 4:
        found = tuple(values.shape)
        hint = ""
        if found == shape:
            hint = "; of one image write x[None]"
        elif values.ndim == 4 and found[1:] == (*shape[1:], shape[0]):
            hint = "; move the channels with transpose(0, 3, 1, 2)"
        raise ConfigError(f"The model takes images of shape {wanted}, and these have the shape {found}{hint}.")
    if not len(values):
        raise ConfigError("There are no images: the first number of their shape is 0.")
    low, high = float(values.min()), float(values.max())
    if not values.is_floating_point():
        if low < 0 or high > 255:
            raise ConfigError(
                f"Whole numbers as pixels must lie from 0 to 255, and these lie from {low:g} to {high:g}."
            )
        return to_pixels(values)
    _check_finite(values, "images")
    if max(-low, high) > 1 + MARGIN:
        hint = "; of pixels from 0 to 255 give x.astype('uint8')" if low >= 0 and high <= 255 else ""
        raise ConfigError(f"Pixels as floats must lie in [-1, 1], and these lie from {low:g} to {high:g}{hint}.")
    return values.float()


def samples_of(x: Any, shapes: Sequence[tuple[int, ...]]) -> Tensor:
    """Samples that are not images, as float32 (B, ...).

    Args:
        x: a tensor or an array (B, ...).
        shapes: that a sample may have.

    Raises:
        ConfigError: the shape is another one, or a value is not finite.
    """
    values = _tensor(x, "samples")
    if tuple(values.shape[1:]) not in shapes or not len(values):
        wanted = " or ".join(f"(B, {', '.join(map(str, shape))})" for shape in shapes)
        hint = "; of one sample write x[None]" if tuple(values.shape) in shapes else ""
        raise ConfigError(
            f"The model takes samples of shape {wanted}, and these have the shape {tuple(values.shape)}{hint}."
        )
    _check_finite(values, "samples")
    return values.float()


def latents_of(z: Any, dim: int) -> Tensor:
    """Latents as float32 (N, Z).

    Args:
        z: a tensor or an array (N, Z).
        dim: Z.

    Raises:
        ConfigError: the shape is another one, or a value is not finite.
    """
    values = _tensor(z, "latents")
    if values.ndim != 2 or values.shape[1] != dim:
        hint = "; of one latent write z[None]" if tuple(values.shape) == (dim,) else ""
        raise ConfigError(
            f"The model takes latents of shape (N, {dim}), and these have the shape {tuple(values.shape)}{hint}."
        )
    _check_finite(values, "latents")
    return values.float()


def check_count(num: Any, seed: Any = 0) -> None:
    """Refuses a number of samples that is not a whole number above 0, and a seed that is not a whole number from 0 on.

    Raises:
        ConfigError: it is one.
    """
    for what, value, least in (("number of samples", num, 1), ("seed", seed, 0)):
        if not hasattr(value, "__index__") or isinstance(value, bool) or value < least:
            raise ConfigError(f"The {what} must be a whole number from {least} on, and it is {value!r}.")


def _tensor(given: Any, what: str) -> Tensor:
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"The {what} must be a tensor or an array of numbers, not {type(given).__name__}.") from None
    if values.dtype == torch.bool or values.is_complex():
        raise ConfigError(f"The {what} must be real numbers, and these are {str(values.dtype).removeprefix('torch.')}.")
    return values.detach()


def _check_finite(values: Tensor, what: str) -> None:
    if not bool(values.isfinite().all()):
        raise ConfigError(f"The {what} hold values that are not finite numbers; leave them out.")
