"""Payload bytes to images, one decoder per encoding.

raw: the numbers in the order of their dimensions (of images C, H, W), little-endian.
posteriors: the same, of arrays (2, ...): the mean and the standard deviation of a Gaussian posterior.
png, jpeg: `pack` writes grey and RGB of 8 bits; foreign files may be of any mode that `pixels.to_eight_bits` takes.
A JPEG in grey or RGB without errors is decoded by simplejpeg, in a fifth of Pillow's time and to the same pixels.
Pillow decodes all others, so it alone decides which files are damaged.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import Image

from ebmscale.data.pixels import channels_first, damage, to_eight_bits
from ebmscale.errors import DataError

Payload = bytes | memoryview
Shape = tuple[int, ...]  # (C, H, W) of images; raw arrays may have any
Decoder = Callable[[Payload, Shape], np.ndarray]

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error,
            Image.DecompressionBombError)  # fmt: skip
"""What Pillow raises for bytes that are not an image."""


def decode_raw(payload: Payload, shape: Shape, dtype: str = "uint8") -> np.ndarray:
    """Numbers to a read-only array of that shape; ValueError if the size differs."""
    kind = np.dtype(dtype).newbyteorder("<")
    if len(payload) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{len(payload)} bytes are not an image of {dtype} {shape}")
    return np.frombuffer(payload, kind).reshape(shape)


def decode_png(payload: Payload, shape: Shape) -> np.ndarray:
    """A PNG file to a uint8 array (C, H, W); ValueError if it is damaged or of another size or mode."""
    return _decode_with_pillow(payload, shape, "PNG")


def decode_jpeg(payload: Payload, shape: Shape) -> np.ndarray:
    """A JPEG file to a uint8 array (C, H, W); ValueError if it is damaged or of another size or mode."""
    pixels = _decode_with_turbo(payload, shape)
    return _decode_with_pillow(payload, shape, "JPEG") if pixels is None else pixels


_COLOURS = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}
"""What a JPEG of each colour space is decoded to."""


def _decode_with_turbo(payload: Payload, shape: Shape) -> np.ndarray | None:
    """A usual JPEG to a uint8 array (C, H, W); None if it has errors or does not have this shape."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(payload)
        colours = _COLOURS.get(space)
        if colours is None or shape != (1 if colours == "GRAY" else 3, height, width):
            return None
        return channels_first(simplejpeg.decode_jpeg(payload, colours))
    except ValueError:
        return None


def _decode_with_pillow(payload: Payload, shape: Shape, kind: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(payload), formats=[kind]) as image:
            if (image.height, image.width) != shape[1:]:  # before it is decoded
                raise ValueError(f"an image of {image.height} x {image.width} pixels does not have the shape {shape}")
            pixels = channels_first(np.asarray(to_eight_bits(image)))
            if pixels.shape != shape:
                raise ValueError(f"an image of shape {pixels.shape} does not have the shape {shape}")
    except _DAMAGED as error:
        raise ValueError(f"no {kind} image: {damage(error)}") from error
    return pixels


POSTERIORS = "posteriors"
"""Encoding of samples (2, ...) of floats: mean and standard deviation of a Gaussian, in the bytes of `raw`."""
DECODERS: dict[str, Decoder] = {
    "raw": decode_raw,
    "png": decode_png,
    "jpeg": decode_jpeg,
    POSTERIORS: decode_raw,
}
UNCOMPRESSED = ("raw", POSTERIORS)


def decoder(encoding: str, dtype: str) -> Decoder:
    """The decoder of a set's payloads; DataError if this version has none for the encoding or the type."""
    if encoding not in DECODERS or (encoding not in UNCOMPRESSED and dtype != "uint8"):
        raise DataError(f"Samples of {dtype} encoded as {encoding!r} cannot be decoded; pack the set again.")
    if encoding in UNCOMPRESSED:
        return lambda payload, shape: decode_raw(payload, shape, dtype)
    return DECODERS[encoding]
