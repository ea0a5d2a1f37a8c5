import io
import itertools
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from ebmscale.data.chunks import read_split
from ebmscale.data.decode import DECODERS, _decode_with_pillow, _decode_with_turbo, decoder
from ebmscale.data.encode import ENCODERS, choose_encoding, encode_all
from ebmscale.data.formats import Record, Source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import ConfigError, DataError

SHAPES = [(1, 5, 7), (3, 5, 7)]


def smooth(shape):
    """An image that JPEG keeps well."""
    ramps = np.indices(shape).astype(float).sum(0) * 10 + 40 * np.arange(shape[0])[:, None, None]
    return ramps.astype(np.uint8)


def source_of(images, dtype="uint8", name="toy"):
    def records():
        for number, image in enumerate(images):
            yield Record(f"train-{number:06d}", image, number % 2, "train")

    return Source(name, "toy", images[0].shape, dtype, ["a", "b"], {"train": len(images)}, records)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_lossless_encodings(encoding, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.testing.assert_array_equal(DECODERS[encoding](ENCODERS[encoding](image), shape), image)


@pytest.mark.parametrize("shape", SHAPES)
def test_jpeg_is_near(shape):
    image = smooth(shape)
    decoded = DECODERS["jpeg"](ENCODERS["jpeg"](image), shape)
    assert decoded.shape == shape
    assert np.abs(decoded.astype(int) - image).mean() < 3


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (61, 47), (8, 8)])
def test_jpeg_has_the_pixels_of_pillow(monkeypatch, mode, progressive, size):
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).resize(size)
    noisy = np.clip(np.asarray(coarse) + random.normal(0, 9, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(noisy).convert(mode)
    shape = (len(mode), size[1], size[0])
    monkeypatch.setattr("PIL.ImageFile.MAXBLOCK", 1 << 20)  # Pillow saves small progressive files with a larger block
    for quality, subsampling in itertools.product((30, 75, 95), (0, 1, 2)):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        fast = _decode_with_turbo(memoryview(file.getvalue()), shape)
        np.testing.assert_array_equal(fast, _decode_with_pillow(file.getvalue(), shape, "JPEG"))


@pytest.mark.parametrize("change", ["cmyk", "truncated", "garbage inside", "another size"])
def test_pillow_decides_about_unusual_jpegs(change):
    file = io.BytesIO()
    Image.fromarray(smooth((3, 40, 40)).transpose(1, 2, 0)).convert("CMYK" if change == "cmyk" else "RGB").save(
        file, "JPEG"
    )
    payload = file.getvalue()
    if change == "truncated":
        payload = payload[: -len(payload) // 8]
    if change == "garbage inside":
        payload = payload[:-40] + b"\xff\xd0" * 15 + payload[-10:]
    shape = (3, 41 if change == "another size" else 40, 40)
    assert _decode_with_turbo(payload, shape) is None

    def verdict(decode):
        try:
            return decode()
        except ValueError as error:
            return str(error)

    np.testing.assert_array_equal(
        verdict(lambda: DECODERS["jpeg"](payload, shape)), verdict(lambda: _decode_with_pillow(payload, shape, "JPEG"))
    )


@pytest.mark.parametrize("encoding", ["raw", "png", "jpeg"])
@pytest.mark.parametrize("change", ["empty", "truncated", "garbage", "another size", "another mode"])
def test_what_cannot_be_decoded_is_a_value_error(encoding, change):
    shape = (3, 20, 20)
    payload = ENCODERS[encoding](smooth(shape))
    payload = {
        "empty": b"",
        "truncated": payload[: len(payload) // 2],
        "garbage": b"x" * 100,
        "another size": ENCODERS[encoding](smooth((3, 20, 21))),
        "another mode": ENCODERS[encoding](smooth((1, 20, 20))),
    }[change]
    with pytest.raises(ValueError, match=r"(no \w+|not an) image"):
        DECODERS[encoding](payload, shape)


def test_png_does_not_open_another_kind_of_file():
    file = io.BytesIO()
    Image.fromarray(smooth((1, 4, 4))[0]).save(file, "BMP")
    with pytest.raises(ValueError, match="no PNG image"):
        DECODERS["png"](file.getvalue(), (1, 4, 4))


def test_decoders_of_a_set():
    numbers = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(">f4")
    np.testing.assert_array_equal(decoder("raw", "float32")(ENCODERS["raw"](numbers), (4, 3, 2)), numbers)
    for encoding, dtype in (("png", "float32"), ("webp", "uint8")):
        with pytest.raises(DataError, match="cannot be decoded"):
            decoder(encoding, dtype)


def test_defaults_by_set():
    assert choose_encoding(source_of([np.zeros((3, 32, 32), np.uint8)])) == "raw"
    assert choose_encoding(source_of([np.zeros((3, 64, 64), np.uint8)])) == "raw"
    assert choose_encoding(source_of([np.zeros((3, 256, 256), np.uint8)])) == "png"
    assert choose_encoding(source_of([np.zeros((4, 256, 256), np.uint8)])) == "raw"
    assert choose_encoding(source_of([np.zeros((3, 256, 256), np.float32)], "float32")) == "raw"


@pytest.mark.parametrize(
    ("image", "encoding", "message"),
    [
        (np.zeros((3, 2, 2), np.uint8), "webp", "choose one of raw, png, jpeg"),
        (np.zeros((3, 2, 2), np.float32), "png", "the samples are float32"),
        (np.zeros((4, 2, 2), np.uint8), "jpeg", "1 or 3 channels"),
    ],
)
def test_encodings_that_do_not_fit(storage, image, encoding, message):
    with pytest.raises(ConfigError, match=message):
        pack(source_of([image], image.dtype.name), storage, encoding=encoding)
    assert not storage.exists()


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_sets_of_pictures_come_back_and_webdataset_decodes_them(storage, encoding):
    images = [smooth((3, 12, 10)) + np.uint8(number) for number in range(30)]
    manifest = pack(source_of(images), storage, encoding=encoding)
    assert Manifest.load(storage).encoding == encoding
    read, labels, keys = read_split(storage, manifest, "train", validation_fraction=0)
    numbers = [int(key.removeprefix("train-")) for key in keys]
    difference = np.abs(read.numpy().astype(int) - np.stack(images)[numbers])
    assert difference.max() == 0 if encoding == "png" else difference.mean() < 3
    assert labels.tolist() == [number % 2 for number in numbers]
    path = storage.local_path(manifest.shards[0].file)
    with tarfile.open(path) as tar:
        assert tar.getnames()[:2] == [f"train-000000.{'png' if encoding == 'png' else 'jpg'}", "train-000000.cls"]
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8"))
    ending = {"png": "png", "jpeg": "jpg"}[encoding]
    for number, sample in enumerate(samples):
        np.testing.assert_array_equal(sample[ending].transpose(2, 0, 1), read.numpy()[numbers.index(number)])


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_the_order_does_not_depend_on_the_threads(num_threads):
    images = [np.full((1, 2, 2), number % 256, np.uint8) for number in range(1000)]
    source = source_of(images)
    encoded = list(encode_all(source.records(), source, "raw", num_threads))
    assert [sample.key for sample in encoded] == [record.key for record in source.records()]
    assert [sample.payload[0] for sample in encoded] == [number % 256 for number in range(1000)]


def test_only_a_bounded_number_of_records_is_in_memory():
    num_taken = 0

    def records():
        nonlocal num_taken
        for number in range(10_000):
            num_taken += 1
            yield Record(f"{number:06d}", np.zeros((1, 2, 2), np.uint8), 0, "train")

    source = source_of([np.zeros((1, 2, 2), np.uint8)])
    encoded = encode_all(records(), source, "raw", num_threads=2)
    next(encoded)
    assert num_taken <= 6 * 64
    encoded.close()


def test_large_images_are_taken_one_by_one():
    num_taken = 0
    image = np.zeros((1, 4096, 1024), np.uint8)

    def records():
        nonlocal num_taken
        for number in range(100):
            num_taken += 1
            yield Record(f"{number:06d}", image, 0, "train")

    encoded = encode_all(records(), source_of([image]), "raw", num_threads=1)
    next(encoded)
    assert num_taken <= 3
    encoded.close()
