import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from ebmscale.data.formats import open_source
from ebmscale.errors import ConfigError, DataError

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(params=["plain", "gzip"])
def folder(request, tmp_path):
    """Four small files in the official form: 5 images for training, 3 for testing."""
    rng = np.random.default_rng(0)
    for name, num_dims in FILES.items():
        num = 5 if name.startswith("train") else 3
        data = idx_bytes(rng.integers(0, 256, (num, 4, 6), np.uint8) if num_dims == 3 else np.arange(num, dtype="u1"))
        if request.param == "gzip":
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (tmp_path / name).write_bytes(data)
    return tmp_path


def rewrite(folder, name, change):
    path = folder / name
    if path.exists():
        path.write_bytes(change(path.read_bytes()))
    else:
        path = folder / f"{name}.gz"
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def test_digits_are_all_there_and_scaled():
    source = open_source("digits", "")
    records = list(source.records())
    assert (len(records), source.counts, source.image_shape) == (1797, {"train": 1797}, (1, 8, 8))
    assert source.classes == [str(i) for i in range(10)]
    images = np.stack([record.image for record in records])
    assert (images.dtype, images.min(), images.max()) == (np.uint8, 0, 255)
    np.testing.assert_allclose(images[:, 0] / 255 * 16, load_digits().images, atol=0.5 / 255 * 16 + 1e-9)
    assert [record.label for record in records] == load_digits().target.tolist()


def test_idx_reads_train_then_test(folder):
    source = open_source("idx", str(folder))
    records = list(source.records())
    assert source.counts == {"train": 5, "test": 3}
    assert [record.part for record in records] == ["train"] * 5 + ["test"] * 3
    assert [record.label for record in records] == [0, 1, 2, 3, 4, 0, 1, 2]
    assert {record.image.shape for record in records} == {(1, 4, 6)}
    expected = np.random.default_rng(0).integers(0, 256, (5, 4, 6), np.uint8)
    np.testing.assert_array_equal(np.concatenate([record.image for record in records[:5]]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "holds 119 bytes of data, but its header says 120"),
        (lambda data: data + b"x", "holds 121 bytes of data, but its header says 120"),
        (lambda data: b"\0\0\x0d\3" + data[4:], "is not an idx file"),
        (lambda data: data[:7], "is not an idx file"),
        (lambda data: b"", "is not an idx file"),
        (lambda data: idx_bytes(np.zeros((4, 4, 6), np.uint8)), "hold 4 images and 5 labels"),
        (lambda data: idx_bytes(np.zeros((5, 4, 5), np.uint8)), "differ in shape"),
    ],
)
def test_idx_refuses_a_damaged_file(folder, change, message):
    rewrite(folder, "train-images-idx3-ubyte", change)
    with pytest.raises(DataError, match=message):
        open_source("idx", str(folder))


def test_idx_refuses_truncated_gzip(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(1000))[:-9])
    with pytest.raises(DataError, match="damaged gzip"):
        open_source("idx", str(tmp_path))


def test_idx_says_which_file_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"has neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz"):
        open_source("idx", str(tmp_path / "nowhere"))


def test_an_unknown_format_is_refused():
    with pytest.raises(ConfigError, match="choose one of digits, idx"):
        open_source("jpeg2000", "")


@pytest.mark.skipif(not MNIST.exists(), reason="the official MNIST files are not on this machine")
def test_official_mnist():
    source = open_source("idx", str(MNIST))
    assert (source.name, source.counts, source.image_shape) == ("mnist", {"train": 60000, "test": 10000}, (1, 28, 28))
    first = next(source.records())
    assert (first.key, first.label, int(first.image.sum())) == ("train-000000", 5, 27525)
