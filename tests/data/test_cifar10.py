"""CIFAR-10 from small files in both official versions; hostile and damaged ones are refused."""

import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ebmscale.data.chunks import read_split
from ebmscale.data.formats import open_source
from ebmscale.data.formats.cifar10 import BATCHES
from ebmscale.data.pack import pack
from ebmscale.errors import DataError

CIFAR10 = Path(__file__).parents[3] / "shared" / "data" / "cifar10" / "cifar10.npz"
NAMES = [name for names in BATCHES.values() for name in names]
NUM = 7  # of a batch


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as the official batches have them."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_string(self, data):
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    dispatch[bytes] = save_string


def python2_pickle(content):
    file = io.BytesIO()
    _Python2Pickler(file, 2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python3_pickle(content):
    return pickle.dumps(content, protocol=2)


@pytest.fixture(scope="module")
def batches():
    """Name to (rows (7, 3072), labels)."""
    rng = np.random.default_rng(0)
    return {name: (rng.integers(0, 256, (NUM, 3072), np.uint8), [(i + j) % 10 for j in range(NUM)])
            for i, name in enumerate(NAMES)}  # fmt: skip


def python_files(batches, dump=python2_pickle):
    return {name: dump({b"data": rows, b"labels": labels, b"batch_label": name.encode(), b"filenames": [b"a.png"]})
            for name, (rows, labels) in batches.items()}  # fmt: skip


def binary_files(batches):
    return {f"{name}.bin": np.concatenate([np.array(labels, np.uint8)[:, None], rows], 1).tobytes()
            for name, (rows, labels) in batches.items()}  # fmt: skip


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_archive(path, inner, files):
    with tarfile.open(path, "w:gz") as tar:
        for name in sorted(files, reverse=True):  # the official archive is in no order either
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return path


def assert_is(source, batches):
    records = list(source.records())
    assert (source.name, source.image_shape, source.dtype) == ("cifar10", (3, 32, 32), "uint8")
    assert source.counts == {"train": 5 * NUM, "test": NUM}
    assert source.classes[:2] == ["airplane", "automobile"]
    images = np.concatenate([rows for rows, _ in batches.values()]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(np.stack([record.load() for record in records]), images)
    assert [record.label for record in records] == [label for _, labels in batches.values() for label in labels]
    assert [record.part for record in records] == ["train"] * 5 * NUM + ["test"] * NUM


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
def test_python_version(tmp_path, batches, dump):
    assert_is(open_source("cifar10", str(write_folder(tmp_path, python_files(batches, dump)))), batches)


def test_binary_version(tmp_path, batches):
    assert_is(open_source("cifar10", str(write_folder(tmp_path, binary_files(batches)))), batches)


def test_the_folder_that_holds_the_unpacked_one(tmp_path, batches):
    write_folder(tmp_path / "cifar-10-batches-bin", binary_files(batches))
    assert_is(open_source("cifar10", str(tmp_path)), batches)


@pytest.mark.parametrize("given", ["archive", "its folder"])
def test_archives(tmp_path, batches, given):
    archive = write_archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files(batches))
    assert_is(open_source("cifar10", str(archive if given == "archive" else tmp_path)), batches)


def test_binary_archive(tmp_path, batches):
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files(batches))
    assert_is(open_source("cifar10", str(archive)), batches)


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(_Hostile(), 2), r"asks for posix\.mkdir"),
        (pickle.dumps({"data": np.array([_Hostile()], object)}, 2), "holds an array of 'O8'"),
        (pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}, 2), "holds an array of 'f8'"),
        (pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]}, 2), "no rows of 3072 bytes"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, 2), "without as many labels"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 2), "without as many labels"),
        (pickle.dumps({"labels": [0]}, 2), "not a batch of CIFAR-10's python version"),
        (pickle.dumps([1, 2], 2), "not a batch of CIFAR-10's python version"),
        (b"", "not a batch of CIFAR-10's python version"),
    ],
)
def test_hostile_and_foreign_pickles(tmp_path, batches, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path, python_files(batches) | {"data_batch_3": content})
    with pytest.raises(DataError, match=message):
        open_source("cifar10", str(tmp_path))
    assert not (tmp_path / "hacked").exists()


def test_a_truncated_pickle(tmp_path, batches):
    files = python_files(batches)
    write_folder(tmp_path, files | {"test_batch": files["test_batch"][:9000]})
    with pytest.raises(DataError, match="test_batch is not a batch of CIFAR-10's python version"):
        open_source("cifar10", str(tmp_path))


def test_a_truncated_binary(tmp_path, batches):
    files = binary_files(batches)
    write_folder(tmp_path, files | {"data_batch_2.bin": files["data_batch_2.bin"][:-1]})
    with pytest.raises(DataError, match=r"data_batch_2\.bin holds 21510 bytes, not a multiple of 3073"):
        open_source("cifar10", str(tmp_path))


def test_a_truncated_archive(tmp_path, batches):
    archive = write_archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files(batches))
    archive.write_bytes(archive.read_bytes()[:-20000])
    with pytest.raises(DataError, match="is a damaged archive"):
        open_source("cifar10", str(archive))


def test_a_missing_batch(tmp_path, batches):
    files = python_files(batches)
    del files["data_batch_4"]
    with pytest.raises(DataError, match="data_batch_4 is missing"):
        open_source("cifar10", str(write_folder(tmp_path / "folder", files)))
    archive = write_archive(tmp_path / "archive.tar.gz", "cifar-10-batches-py", files)
    with pytest.raises(DataError, match="has no data_batch_4"):
        open_source("cifar10", str(archive))


def test_nothing_of_the_kind(tmp_path):
    with pytest.raises(DataError, match="get the set with `ebmscale fetch cifar10"):
        open_source("cifar10", str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        open_source("cifar10", str(tmp_path / "nowhere"))


@pytest.mark.skipif(not CIFAR10.exists(), reason="the CIFAR-10 arrays are not on this machine")
def test_the_real_images_by_way_of_the_binary_version(tmp_path, storage):
    with np.load(CIFAR10) as arrays:
        images, labels = arrays["x_train"][:600].transpose(0, 3, 1, 2), arrays["y_train"][:600]
    rows = np.concatenate([labels[:, None], images.reshape(600, -1)], 1)
    write_folder(tmp_path, {f"{name}.bin": part.tobytes() for name, part in zip(NAMES, np.split(rows, 6), strict=True)})
    manifest = pack(open_source("cifar10", str(tmp_path)), storage)
    read, read_labels, keys = read_split(storage, manifest, "train", validation_fraction=0)
    numbers = [int(key.removeprefix("train-")) for key in keys]
    np.testing.assert_array_equal(read.numpy(), images[numbers])
    np.testing.assert_array_equal(read_labels.numpy(), labels[numbers])
