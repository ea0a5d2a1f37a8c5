import numpy as np
import pytest
from scipy.io import savemat

from ebmscale.data.formats import open_source
from ebmscale.errors import DataError

NUMS = {"train": 6, "test": 4, "extra": 11}


def content(num, seed=0):
    """What a file of SVHN holds: X (32, 32, 3, N) and y (N, 1) with labels from 1 to 10."""
    images = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, num), np.uint8)
    return {"X": images, "y": (np.arange(num, dtype=np.uint8)[:, None] + 9) % 10 + 1}


@pytest.fixture
def folder(tmp_path):
    for seed, (name, num) in enumerate(NUMS.items()):
        savemat(tmp_path / f"{name}_32x32.mat", content(num, seed), do_compression=name != "test")
    return tmp_path


def test_all_three_files(folder):
    source = open_source("svhn", str(folder))
    assert (source.counts, source.image_shape) == ({"train": 17, "test": 4}, (3, 32, 32))
    assert source.classes == [str(digit) for digit in range(10)]
    records = list(source.records())
    assert [record.label for record in records] == [0, 1, 2, 3, 4, 5, *range(10), 0, 0, 1, 2, 3]
    assert [record.part for record in records] == ["train"] * 17 + ["test"] * 4
    assert (records[6].key, records[17].key) == ("extra-000000", "test-000000")
    np.testing.assert_array_equal(records[2].load(), content(6)["X"][..., 2].transpose(2, 0, 1))


def test_extra_may_be_missing_and_the_others_not(folder):
    (folder / "extra_32x32.mat").unlink()
    assert open_source("svhn", str(folder)).counts == {"train": 6, "test": 4}
    (folder / "test_32x32.mat").unlink()
    with pytest.raises(DataError, match=r"test_32x32\.mat is missing; get it with `ebmscale fetch svhn"):
        open_source("svhn", str(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"X": np.zeros((32, 32, 1, 6), np.uint8)},
        {"X": np.zeros((6, 32, 32, 3), np.uint8)},
        {"X": np.zeros((32, 32, 3, 6))},
        {"X": np.zeros((32, 32, 3), np.uint8)},
        {"y": np.ones((5, 1), np.uint8)},
    ],
)
def test_another_layout(folder, change):
    savemat(folder / "train_32x32.mat", content(6) | change)
    with pytest.raises(DataError, match=r"but X uint8 .* and y .* are needed"):
        open_source("svhn", str(folder))


def test_other_variables(folder):
    savemat(folder / "train_32x32.mat", {"digitStruct": np.zeros(3)})
    with pytest.raises(DataError, match="holds digitStruct double"):
        open_source("svhn", str(folder))


def test_labels_that_are_no_digits(folder):
    savemat(folder / "test_32x32.mat", content(4) | {"y": np.zeros((4, 1), np.uint8)})
    with pytest.raises(DataError, match="labels outside 1 to 10"):
        list(open_source("svhn", str(folder)).records())


@pytest.mark.parametrize("data", [b"", b"x" * 1000])
def test_no_matlab_file(folder, data):
    (folder / "train_32x32.mat").write_bytes(data)
    with pytest.raises(DataError, match="is not a MATLAB file of version 5, or damaged"):
        open_source("svhn", str(folder))


def test_a_truncated_file(folder):
    path = folder / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"holds X uint8 \(32, 32, 3, 6\), but X .* and y .* are needed"):
        open_source("svhn", str(folder))


def test_damage_within_an_array(folder):
    path = folder / "train_32x32.mat"
    data = bytearray(path.read_bytes())
    data[3000:3100] = bytes(100)  # of the compressed images
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not a MATLAB file of version 5, or damaged"):
        list(open_source("svhn", str(folder)).records())
