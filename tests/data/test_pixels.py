"""Pictures of every mode become the 8 bits that they stand for, or are refused."""

import io

import numpy as np
import pytest
from PIL import Image

from ebmscale.data.pixels import orientation, to_eight_bits, upright

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def stored(image, kind, **options):
    """The image as it is read from a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_by_their_range(kind):
    image = stored(Image.fromarray(RAMP.astype(np.uint16) * 257), kind)
    np.testing.assert_array_equal(np.asarray(to_eight_bits(image)), RAMP)


def test_sixteen_bits_of_either_byte_order():
    for order in ("<", ">"):
        image = Image.frombytes(
            "I;16B" if order == ">" else "I;16", (16, 16), (RAMP.astype(f"{order}u2") * 257).tobytes()
        )
        np.testing.assert_array_equal(np.asarray(to_eight_bits(image)), RAMP)


def test_sixteen_bits_round_to_the_nearest():
    values = np.arange(0, 65536, 13, dtype=np.uint16)[None]
    found = np.asarray(to_eight_bits(Image.fromarray(values))).astype(int)
    assert np.abs(found - values * (255 / 65535)).max() <= 0.5 + 1e-9


def test_floats_from_0_to_1_are_scaled():
    image = stored(Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF")
    np.testing.assert_array_equal(np.asarray(to_eight_bits(image)), RAMP)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (RAMP.astype(np.float32), r"floats from 0 to 255; as a picture they must lie in \[0, 1\]"),
        (RAMP.astype(np.float32) / 255 - 0.5, r"must lie in \[0, 1\]"),
        (np.full((2, 2), np.nan, np.float32), "floats from nan to nan"),
        (RAMP.astype(np.int32), r"signed or 32-bit integers \(from 0 to 255\)"),
    ],
)
def test_numbers_without_a_white_are_refused(pixels, reason):
    with pytest.raises(ValueError, match=reason):
        to_eight_bits(stored(Image.fromarray(pixels), "TIFF"))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "HSV", "YCbCr", "P", "PA"]
)
def test_black_and_white_of_every_mode(mode):
    """Half a picture black, half white: equal in every mode, whatever it stores."""
    pixels = np.repeat(np.array([[0, 255]], np.uint8), 4, axis=0)
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")
    image = to_eight_bits(Image.fromarray(pixels).convert("RGB").convert(through).convert(mode))
    assert image.mode in ("L", "RGB")
    np.testing.assert_array_equal(np.asarray(image.convert("L")), pixels)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_lies_on_white(mode):
    alpha = np.array([[0, 51, 255]], np.uint8)
    image = Image.fromarray(np.zeros((1, 3), np.uint8)).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    np.testing.assert_array_equal(np.asarray(to_eight_bits(image).convert("L")), 255 - alpha)


def test_a_palette_with_a_transparent_colour_lies_on_white():
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    found = to_eight_bits(stored(image, "PNG", transparency=0))
    assert [found.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (40, 50, 60)]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_several_frames_are_refused(kind):
    frames = [Image.fromarray(np.full((4, 4, 3), shade, np.uint8)) for shade in (0, 100, 200)]
    image = stored(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="it has 3 frames"):
        to_eight_bits(image)
    assert to_eight_bits(stored(frames[0], kind)).size == (4, 4)


def test_the_preview_in_a_photograph_is_no_frame():
    photograph, preview = (Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200))
    image = stored(photograph, "MPO", save_all=True, append_images=[preview])
    assert np.asarray(to_eight_bits(image)).max() < 10


def test_a_mode_without_conversion_is_named():
    with pytest.raises(ValueError, match="it is of mode LAB"):
        to_eight_bits(Image.new("LAB", (2, 2)))


@pytest.mark.parametrize("number", range(1, 9))
def test_every_orientation_is_turned_upright(number):
    """By the definition of the tag: which sides of the shown picture the stored first row and column are."""
    shown = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turned = {
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1],
        5: shown.T, 6: shown.T[::-1], 7: shown.T[::-1, ::-1], 8: shown.T[:, ::-1],
    }[number]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(turned))
    exif = image.getexif()
    exif[0x0112] = number
    image = stored(image, "PNG", exif=exif)
    assert orientation(image) == number
    np.testing.assert_array_equal(np.asarray(upright(image)), shown)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_a_picture_as_it_is():
    image = stored(Image.fromarray(RAMP), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(np.asarray(upright(image)), RAMP)
