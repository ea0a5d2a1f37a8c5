import contextlib
from pathlib import Path

import numpy as np
import pytest

from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.data.stream import ImageStream, read_split
from ebmscale.errors import DataError

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10" / "cifar10.npz"


@pytest.fixture
def latents():
    return np.random.default_rng(0).normal(size=(20, 4, 32, 32)).astype(np.float32)


def loaded(source):
    return np.stack([record.load() for record in source.records()])


def test_latents_are_mapped_and_their_type_kept(tmp_path, latents):
    np.save(tmp_path / "set.npy", latents)
    source = open_source("npy", str(tmp_path / "set.npy"))
    assert (source.name, source.image_shape, source.dtype, source.classes) == ("set", (4, 32, 32), "float32", [])
    assert isinstance(next(source.records()).image, np.memmap)
    np.testing.assert_array_equal(loaded(source), latents)
    assert {record.label for record in source.records()} == {-1}


@pytest.mark.parametrize("dtype", [">f4", "<f8", "f2"])
def test_numbers_come_back_from_shards(tmp_path, storage, latents, dtype):
    latents = latents.astype(dtype)
    np.save(tmp_path / "set.npy", latents)
    manifest = pack(open_source("npy", str(tmp_path / "set.npy")), storage)
    assert (manifest.encoding, manifest.dtype) == ("raw", np.dtype(dtype).name)
    read, _, keys = read_split(storage, manifest, "train", validation_fraction=0)
    np.testing.assert_array_equal(read.numpy(), latents[[int(key.removeprefix("train-")) for key in keys]])


@pytest.mark.parametrize(("dtype", "shape"), [("f4", (2, 3, 4, 5)), ("u1", (3, 4, 4, 4)), ("u1", (2, 1, 3, 2, 3))])
def test_samples_of_any_shape_come_back_from_shards(tmp_path, storage, dtype, shape):
    arrays = np.random.default_rng(0).integers(0, 256, (10, *shape)).astype(dtype)
    np.save(tmp_path / "set.npy", arrays)
    pack(open_source("npy", str(tmp_path / "set.npy")), storage)
    manifest = Manifest.load(storage)
    assert (manifest.encoding, manifest.image_shape) == ("raw", shape)
    read, _, keys = read_split(storage, manifest, "train", validation_fraction=0)
    np.testing.assert_array_equal(read.numpy(), arrays[[int(key.removeprefix("train-")) for key in keys]])
    settings = {"split": "train", "batch_size": 4, "seed": 0, "num_streams": 2, "window": 2}
    with contextlib.closing(ImageStream(storage, manifest, validation_fraction=0, **settings)) as stream:
        batch = next(iter(stream))
    np.testing.assert_array_equal(batch.images.numpy(), arrays[[int(key.removeprefix("train-")) for key in batch.keys]])


@pytest.mark.parametrize(
    ("shape", "dtype", "becomes"),
    [
        ((5, 7), "f4", (7, 1, 1)),
        ((5, 8, 6), "u1", (1, 8, 6)),
        ((5, 8, 6, 3), "u1", (3, 8, 6)),
        ((5, 3, 8, 3), "u1", (3, 8, 3)),
        ((5, 8, 6, 3), "f4", (8, 6, 3)),
        ((5, 8, 6, 4), "u1", (8, 6, 4)),
        ((5, 2, 4, 6, 3), "u1", (2, 4, 6, 3)),
        ((5, 2, 3, 2, 3, 2), "f4", (2, 3, 2, 3, 2)),
    ],
)
def test_shapes(tmp_path, shape, dtype, becomes):
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype))
    assert open_source("npy", str(tmp_path / "a.npy")).image_shape == becomes


def test_npz_with_both_parts_and_labels(tmp_path):
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 3, 2, 2)
    np.savez(tmp_path / "a.npz", x_train=images[:3], y_train=[0, 2, 1], x_test=images[3:], y_test=[1, 0])
    source = open_source("npy", str(tmp_path / "a.npz"))
    assert (source.counts, source.classes) == ({"train": 3, "test": 2}, ["0", "1", "2"])
    assert [record.label for record in source.records()] == [0, 2, 1, 1, 0]
    np.testing.assert_array_equal(loaded(source), images)


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y"), ("whatever", "y")])
def test_npz_names(tmp_path, images, labels):
    np.savez_compressed(tmp_path / "a.npz", **{images: np.zeros((4, 1, 2, 2), np.uint8), labels: np.arange(4)})
    assert [record.label for record in open_source("npy", str(tmp_path / "a.npz")).records()] == [0, 1, 2, 3]


def test_a_folder_of_arrays(tmp_path, latents):
    np.save(tmp_path / "b.npy", latents[:8])
    np.save(tmp_path / "c.npy", latents[8:])
    np.save(tmp_path / "labels.npy", np.arange(20))
    source = open_source("npy", str(tmp_path))
    assert source.counts == {"train": 20}
    np.testing.assert_array_equal(loaded(source), latents)
    assert [record.label for record in source.records()] == list(range(20))
    assert [record.key for record in source.records()][7:9] == ["train-0000-000007", "train-0001-000000"]


def objects():
    return np.array([{"a": 1}, None], object)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": objects()}, "it holds Python objects"),
        ({"x": np.zeros((2, 3), np.int64)}, "are int64; convert them to one of uint8"),
        ({"x": np.zeros((2, 3), np.complex64)}, "are complex64"),
        ({"x": np.zeros((0, 3), np.float32)}, "is of shape"),
        ({"x": np.zeros(3, np.float32)}, "is of shape"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.zeros(3, int)}, "labels in .* are int64 of shape"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.zeros(2)}, "labels in .* are float64"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.array([0, -1])}, "one whole number from 0 on"),
        ({"x_train": np.zeros((2, 3), "f4"), "x_test": np.zeros((2, 4), "f4")}, "pack one shape and type at a time"),
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}, "holds a, b; call the samples images or x_train"),
        ({}, "holds nothing"),
    ],
)
def test_npz_that_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_source("npy", str(tmp_path / "a.npz"))


def test_npy_that_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, objects())
    with pytest.raises(DataError, match="it holds Python objects"):
        open_source("npy", str(path))
    np.save(path, np.zeros((100, 100)))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot be read"):
        open_source("npy", str(path))
    path.write_bytes(b"hello")
    with pytest.raises(DataError, match="is no NumPy file"):
        open_source("npy", str(path))
    np.save(path, np.float32(3))
    with pytest.raises(DataError, match="a single number"):
        open_source("npy", str(path))


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no \.npy files of samples"):
        open_source("npy", str(tmp_path))
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 8, 8), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((2, 4, 8, 9), np.float32))
    with pytest.raises(DataError, match=r"float32 \(4, 8, 8\) and float32 \(4, 8, 9\); pack one shape"):
        open_source("npy", str(tmp_path))
    np.save(tmp_path / "y.npy", np.zeros(5, int))
    with pytest.raises(DataError, match="the arrays beside it hold 4 samples"):
        open_source("npy", str(tmp_path))


@pytest.mark.skipif(not CIFAR10.exists(), reason="the CIFAR-10 arrays are not on this machine")
def test_the_real_cifar10_arrays():
    source = open_source("npy", str(CIFAR10))
    assert (source.counts, source.image_shape, source.dtype) == (
        {"train": 50000, "test": 1000}, (3, 32, 32), "uint8"
    )  # fmt: skip
    train = [record.load().mean((1, 2)) / 255 for record in source.records() if record.part == "train"]
    means = np.mean(train, axis=0)
    np.testing.assert_allclose(means, [0.49140, 0.48216, 0.44653], atol=5e-6)
