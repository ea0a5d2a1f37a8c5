import numpy as np
import pytest
from PIL import Image

from ebmscale.data.formats import open_source
from ebmscale.errors import DataError


@pytest.fixture
def celeba(tmp_path):
    """Five faces of the official 178 x 218."""
    for number in range(1, 6):
        pixels = np.random.default_rng(number).integers(0, 256, (218, 178, 3), np.uint8)
        (tmp_path / "img_align_celeba").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "img_align_celeba" / f"{number:06d}.jpg")
    lines = [f"{number:06d}.jpg {part}" for number, part in zip(range(1, 6), (0, 2, 1, 0, 2), strict=True)]
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    values = {1: "-1 1", 2: "1 1", 3: " 1 -1", 4: "-1  1", 5: "-1 -1"}
    rows = [f"{number:06d}.jpg {value}" for number, value in values.items()]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["5", "Bald Smiling ", *rows]) + "\n")
    return tmp_path


def test_celeba_follows_the_partition_file(celeba):
    source = open_source("celeba", str(celeba))
    assert (source.image_shape, source.counts, source.classes) == (
        (3, 64, 64),
        {"train": 2, "validation": 1, "test": 2},
        [],
    )
    records = list(source.records())
    assert [(record.key, record.label, record.part) for record in records] == [
        ("celeba-000001", -1, "train"), ("celeba-000004", -1, "train"), ("celeba-000003", -1, "validation"),
        ("celeba-000002", -1, "test"), ("celeba-000005", -1, "test"),
    ]  # fmt: skip
    with Image.open(celeba / "img_align_celeba" / "000001.jpg") as image:
        expected = image.crop((19, 39, 159, 179)).resize((64, 64), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(records[0].load(), np.asarray(expected).transpose(2, 0, 1))


def test_celeba_in_another_size_and_grey(celeba):
    source = open_source("celeba", str(celeba), size=32, grey=True)
    assert next(source.records()).load().shape == source.image_shape == (1, 32, 32)


def test_celeba_says_what_is_missing(celeba):
    (celeba / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 1 listed images, first 000003\.jpg"):
        open_source("celeba", str(celeba))
    (celeba / "list_eval_partition.txt").write_text("000001.jpg train\n")
    with pytest.raises(DataError, match=r"Line 1 of .* is '000001\.jpg train', not a name and a partition"):
        open_source("celeba", str(celeba))
    (celeba / "list_eval_partition.txt").write_text("")
    with pytest.raises(DataError, match="is empty"):
        open_source("celeba", str(celeba))
    (celeba / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"list_eval_partition\.txt is missing; `ebmscale fetch celeba"):
        open_source("celeba", str(celeba))


def test_celeba_labels_by_one_attribute(celeba):
    source = open_source("celeba", str(celeba), attribute="Smiling")
    assert source.classes == ["not Smiling", "Smiling"]
    assert {record.key[-1]: record.label for record in source.records()} == {"1": 1, "2": 1, "3": 0, "4": 1, "5": 0}


def test_celeba_attributes_that_cannot_be(celeba):
    with pytest.raises(DataError, match="has no attribute 'smiling'; choose one of Bald, Smiling"):
        open_source("celeba", str(celeba), attribute="smiling")
    path = celeba / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    for content, message in (
        (lines[:-1], r"does not list 000005\.jpg"),
        ([*lines[:-1], "000005.jpg 1"], "not a name and 2 attributes"),
        ([*lines[:-1], "000005.jpg 0 1"], "not a name and 2 attributes"),
        ([], "has no attribute 'Bald'; choose one of none"),
    ):
        path.write_text("\n".join(content))
        with pytest.raises(DataError, match=message):
            open_source("celeba", str(celeba), attribute="Bald")
    path.unlink()
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt is missing"):
        open_source("celeba", str(celeba), attribute="Bald")
