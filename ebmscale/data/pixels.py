"""Pictures of every mode of Pillow to 8 bits a channel: the one rule for packing, indexing and decoding.

16-bit grey is scaled by the range of its type (65535 becomes 255), float grey must lie in [0, 1]. A palette becomes
its colours, 1 bit becomes 0 and 255, CMYK becomes RGB. Transparent pixels are laid on white. A
picture of several frames is refused, as only one of them could be kept.
"""

import numpy as np
from PIL import Image, UnidentifiedImageError

MODES = {
    "1": "L",
    "CMYK": "RGB",
    "HSV": "RGB",
    "YCbCr": "RGB",
    "RGBX": "RGB",
}  # the modes that Pillow converts correctly
_ALPHA = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB"}
MOST_PIXELS = 1 << 26  # of a picture, 8192 x 8192: a small file can claim any number of them
_ORIENTATION = 0x0112  # the EXIF tag
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262


def check_size(image: Image.Image) -> None:
    """Refuses an opened picture with a ValueError if decoding it would fill the memory."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, and at most {MOST_PIXELS:,} are decoded; make it smaller"
        )


def to_eight_bits(image: Image.Image) -> Image.Image:
    """The picture in mode L (grey) or RGB, of the same size.

    Raises:
        ValueError: its numbers or frames have no unique meaning as a picture of 8 bits; the text says why.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph with its preview
        raise ValueError(f"it has {frames} frames; save the one that is meant as a picture of its own")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "PA":
        image = image.convert("RGBA")
    elif image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA" if image.mode == "RGB" else "LA")
    if image.mode in _ALPHA:
        return _on_white(image)
    if image.mode in MODES:
        return image.convert(MODES[image.mode])
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(image)
    if image.mode not in ("L", "RGB"):
        raise ValueError(f"it is of mode {image.mode}, which has no conversion to RGB; save it as RGB")
    return image


def orientation(image: Image.Image) -> int:
    """How the picture is stored, from 1 (upright) to 8; 1 too where it has no EXIF tag that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # what damaged EXIF raises has no common class; the pixels may be sound
        return 1


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF tag says."""
    turn = _TRANSPOSES.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) to (C, H, W)."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _on_white(image: Image.Image) -> Image.Image:
    plain = _ALPHA[image.mode]
    image = image.convert(f"{plain}A")
    alpha = image.getchannel("A")
    colours = image.convert(plain)
    if alpha.getextrema() == (255, 255):
        return colours
    white = Image.new(plain, image.size, 255 if plain == "L" else (255, 255, 255))
    return Image.composite(colours, white, alpha)


def _scaled(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, or of floats, to bytes."""
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # also where one is NaN
            raise ValueError(f"it holds floats from {low:g} to {high:g}; as a picture they must lie in [0, 1]")
        return Image.fromarray(np.round(values * 255).astype(np.uint8))
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these two hold 16 bits in it
        raise ValueError(
            f"it holds signed or 32-bit integers (from {values.min()} to {values.max()}), whose white is not "
            "known; save it with 8 or 16 bits"
        )
    top, inverted = 65535, False
    if (tags := getattr(image, "tag_v2", None)) is not None:
        top = 2 ** min(16, tags.get(_TIFF_BITS, (16,))[0]) - 1
        inverted = tags.get(_TIFF_PHOTOMETRIC) == 0  # white is zero, which Pillow inverts only up to 8 bits
    scaled = (values.astype(np.uint32) * 255 + top // 2) // top
    return Image.fromarray((255 - scaled if inverted else scaled).clip(0, 255).astype(np.uint8))


def damage(error: Exception) -> str:
    """What is wrong with the bytes of a picture that Pillow does not read, in words."""
    return "its bytes are not those of a picture" if isinstance(error, UnidentifiedImageError) else str(error)
