"""Payload bytes to images, one decoder per encoding."""

import math
from collections.abc import Callable

import numpy as np

Payload = bytes | memoryview
Shape = tuple[int, int, int]  # C, H, W


def decode_raw(payload: Payload, shape: Shape) -> np.ndarray:
    """Bytes of a uint8 image in C, H, W order to a read-only array (C, H, W); ValueError where the size differs."""
    if len(payload) != math.prod(shape):
        raise ValueError(f"{len(payload)} bytes are no image of shape {shape}")
    return np.frombuffer(payload, np.uint8).reshape(shape)


DECODERS: dict[str, Callable[[Payload, Shape], np.ndarray]] = {"raw": decode_raw}
