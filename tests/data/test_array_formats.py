import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmscale.data.chunks import read_split
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import DataError
from tests.data.streams import image_stream

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
    with contextlib.closing(image_stream(storage, manifest, validation_fraction=0, **settings)) as stream:
        batch = next(iter(stream))
    np.testing.assert_array_equal(batch.images.numpy(), arrays[[int(key.removeprefix("train-")) for key in batch.keys]])


@pytest.mark.parametrize(
    ("shape", "dtype", "becomes"),
    [
        ((5, 7), "f4", (7,)),
        ((5, 7), "u1", (7, 1, 1)),
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


def test_the_parts_of_an_archive(tmp_path):
    images = np.arange(9 * 4, dtype=np.uint8).reshape(9, 2, 2)
    arrays = {"train_images": images[:4], "val_images": images[4:6], "test_images": images[6:]}
    labels = {"train_labels": [[3], [1], [0], [2]], "val_labels": [[2], [1]], "test_labels": [[0], [0], [1]]}
    np.savez(tmp_path / "a.npz", **arrays, **labels, weights=np.zeros(3))
    source = open_source("npy", str(tmp_path / "a.npz"))
    assert source.counts == {"train": 4, "validation": 2, "test": 3}
    assert [record.label for record in source.records()] == [3, 1, 0, 2, 2, 1, 0, 0, 1]
    assert source.notes == ("arrays not packed: weights",)
    np.testing.assert_array_equal(loaded(source)[:, 0], images)


@pytest.mark.parametrize("layout", ["x_{}.npy y_{}.npy", "{}/images.npy {}/labels.npy", "{}.npy {}_labels.npy"])
def test_the_parts_of_a_folder_of_arrays(tmp_path, latents, layout):
    places = {"train": slice(0, 10), "val": slice(10, 14), "test": slice(14, 20)}
    for part, place in places.items():
        samples, labels = (tmp_path / name for name in layout.format(part, part).split())
        samples.parent.mkdir(exist_ok=True)
        np.save(samples, latents[place])
        np.save(labels, np.arange(20)[place])
    source = open_source("npy", str(tmp_path))
    assert source.counts == {"train": 10, "validation": 4, "test": 6}
    np.testing.assert_array_equal(loaded(source), latents)
    assert [record.label for record in source.records()] == list(range(20))
    assert len({record.key for record in source.records()}) == 20


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "test"], r"a\.npy lies beside arrays whose names say a part of the set, but its own name does not"),
        (["x_train", "y_test"], r"y_test\.npy holds labels of a part that has no samples"),
        (
            ["x_train", "x_test", "y_train", "y_tset"],
            r"has y_train\.npy and y_tset\.npy, which would both be .* part train",
        ),
        (["test/x", "other/x"], "beside it other, whose part is not known"),
    ],
)
def test_arrays_whose_part_is_not_known_are_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match=message):
        open_source("npy", str(tmp_path))


@pytest.mark.parametrize("dtype", ["i8", "u8", ">i4", "u1"])
def test_labels_of_any_integer_type(tmp_path, dtype):
    labels = np.array([3, 0, 200], dtype)
    np.savez(tmp_path / "a.npz", x_train=np.zeros((3, 2)), y_train=labels, x_test=np.zeros((1, 2)), y_test=[1])
    source = open_source("npy", str(tmp_path / "a.npz"))
    assert [record.label for record in source.records()] == [3, 0, 200, 1]
    assert source.classes == [str(number) for number in range(201)]


def test_large_numbers_as_labels_are_names(tmp_path):
    labels = np.array([20240101000000, 5, 5, 3 * 10**8])
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=labels)
    source = open_source("npy", str(tmp_path / "a.npz"))
    assert [source.classes[record.label] for record in source.records()] == [str(label) for label in labels]


def test_memory_order_does_not_matter(tmp_path, storage, latents):
    np.save(tmp_path / "set.npy", np.asfortranarray(latents))
    manifest = pack(open_source("npy", str(tmp_path / "set.npy")), storage)
    read, _, keys = read_split(storage, manifest, "train", validation_fraction=0)
    np.testing.assert_array_equal(read.numpy(), latents[[int(key.removeprefix("train-")) for key in keys]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_named(tmp_path, storage, value):
    np.save(tmp_path / "set.npy", np.array([[0.0, 1.0], [2.0, value]]))
    with pytest.raises(DataError, match="Sample train-000001 of set holds NaN or infinity"):
        pack(open_source("npy", str(tmp_path / "set.npy")), storage)


@settings(max_examples=60)
@given(
    st.sampled_from(["npy", "npz"]),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1),
    st.data(),
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, ending, changes, data):
    path = tmp_path_factory.getbasetemp() / f"damaged.{ending}"
    images, labels = np.zeros((4, 2, 3), np.uint8), np.arange(4)
    np.save(path, images) if ending == "npy" else np.savez_compressed(path, x=images, y=labels)
    content = bytearray(path.read_bytes())
    for place, byte in changes:
        content[place % len(content)] = byte
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    with contextlib.suppress(DataError):
        assert all(record.load().ndim for record in open_source("npy", str(path)).records())


def objects():
    return np.array([{"a": 1}, None], object)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": objects()}, "it holds Python objects"),
        ({"x": np.zeros((2, 3), np.int64)}, "are int64; convert them to one of uint8"),
        ({"x": np.zeros((2, 3), np.complex64)}, "are complex64"),
        ({"x": np.zeros((2, 3), np.uint16)}, "are uint16; .* of pictures divide them by 257 to bytes"),
        ({"x": np.zeros((2, 3), bool)}, "are bool; .* of pictures multiply them by 255"),
        ({"x": np.zeros((2, 3), np.longdouble)}, "are (float128|longdouble|float96)"),
        ({"x": np.zeros((2, 3), "M8[s]")}, "are datetime64"),
        ({"x": np.zeros((2, 3), "U3")}, "are str"),
        ({"x": np.zeros((0, 3), np.float32)}, "is of shape"),
        ({"x": np.zeros(3, np.float32)}, "is of shape"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.zeros(3, int)}, "labels in .* are int64 of shape"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.zeros(2)}, "labels in .* are float64"),
        ({"x": np.zeros((2, 3), "f4"), "y": np.array([0, -1])}, "one whole number from 0 on"),
        ({"x_train": np.zeros((2, 3), "f4"), "x_test": np.zeros((2, 4), "f4")}, "pack one shape and type at a time"),
        (
            {"x": np.zeros((2, 3)), "labels_fine": [0, 1], "labels": [0, 0]},
            "has labels_fine and labels, which would both",
        ),
        (
            {"mean": np.zeros((2, 3)), "old_mean": np.zeros((2, 3)), "std": np.ones((2, 3))},
            "has mean and old_mean, which",
        ),
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}, "holds a, b; name the array of samples images or x_train"),
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
    with pytest.raises(DataError, match="is not a NumPy file"):
        open_source("npy", str(path))
    np.save(path, np.float32(3))
    with pytest.raises(DataError, match="a single number"):
        open_source("npy", str(path))
    with path.open("wb") as file:
        np.save(file, np.zeros((100, 3)))
        np.save(file, np.zeros((100, 3)))
    with pytest.raises(DataError, match="2,528 bytes after its array"):
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
