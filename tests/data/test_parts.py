"""The parts of a set from names, by one rule."""

import pytest

from ebmscale.data.parts import part_of, parts_of
from ebmscale.errors import DataError


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("train", ["train", "Train", "training_set", "x_train", "X_train", "Xtrain", "train2017", "seg_train"]),
        ("validation", ["val", "VALID", "val-000001.tar", "y_val", "dev", "imgs.val", "valset", "train_val"]),
        ("test", ["test", "Testing", "t10k-images", "x_test1k", "set-test-0.tar", "testset", "train-test", "test_val"]),
        (None, ["cat", "valley", "contest", "latest", "invalid", "restrain", "trainer", "images", "extra", ""]),
    ],
)  # fmt: skip
def test_words_say_the_part(part, names):
    assert {name: part_of(name) for name in names} == dict.fromkeys(names, part)


@pytest.mark.parametrize(
    "names",
    [
        ["train", "val", "test"],
        ["Training", "Testing"],
        ["seg_train", "seg_test"],
        ["train2017", "val2017"],
        ["train"],
        ["TEST"],
    ],
)
def test_folders_that_cut_a_set(names):
    assert parts_of(names, "set") == {name: part_of(name) for name in names}


@pytest.mark.parametrize(
    "names", [["cat", "dog"], ["train", "bus", "car"], ["valid", "invalid"], ["test tube", "test drive"], []]
)  # fmt: skip
def test_folders_that_are_classes(names):
    assert parts_of(names, "set") is None


@pytest.mark.parametrize(
    ("names", "unknown"),
    [
        (["train", "test", "ground_truth"], "ground_truth"),
        (["cat", "dog", "test"], "cat, dog"),
        (["cat", "val"], "cat"),
        (["seg_train", "seg_test", "seg_pred"], "seg_pred"),
    ],
)
def test_folders_whose_part_is_not_known_are_refused(names, unknown):
    with pytest.raises(DataError, match=rf"beside it {unknown}, whose part is not known; move these away"):
        parts_of(names, "set")
