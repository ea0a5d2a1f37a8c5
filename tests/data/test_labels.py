"""Labels as others write them."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.data.labels import LABEL_BYTES, LabelError, are_captions, number_labels, read_label


@pytest.mark.parametrize("ending", ["cls", "txt"])
@pytest.mark.parametrize(
    ("content", "label"),
    [
        (b"3", 3), (b"3\n", 3), (b"3\r\n", 3), (b" 3 ", 3), (b"3.0", 3), (b"+3", 3), (b"-1", -1), (b"007", 7),
        (b"\xef\xbb\xbf3", 3), ("3".encode("utf-16"), 3), (b"3\0", 3), (b"20240101000000", 20240101000000),
        (b"cat", "cat"), ("\ufeffcafé\r\n".encode(), "café"), (b"caf\xe9", "caf\\xe9"),
        (b"3.5", "3.5"), (b"1e3", "1e3"),
        (b"", None), (b" \n", None), (b"9" * 1000, "9" * 1000),
    ],
)  # fmt: skip
def test_text(ending, content, label):
    assert read_label(ending, content) == label


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, 3), (3.0, 3), (-1, -1), ("3", 3), ("3.0", 3), ("cat", "cat"), (True, "true"), (None, None),
        (1e300, str(int(1e300))),
        ({"label": 3}, 3), ({"cls": 2, "label": 3}, 2), ({"class": "dog"}, "dog"), ({"width": 8}, None),
        ({"label": None}, None),
    ],
)  # fmt: skip
def test_json(value, label):
    assert read_label("json", json.dumps(value).encode("utf-8-sig")) == label


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'"' + b"c" * 1001 + b'"', "is longer than 1,000 letters"),
        (b"9" * 5000, "is not JSON"),
        (b'{"label": 3.5}', "is '3.5', neither a whole number nor a name"),
        (b'{"label": [1, 2]}', "neither a whole number nor a name"),
        (b"NaN", "neither a whole number nor a name"),
        (b" " * (LABEL_BYTES + 1), "is longer than"),
    ],
)
def test_labels_that_cannot_be_read(content, reason):
    with pytest.raises(LabelError, match=reason):
        read_label("json", content)


@given(st.binary(max_size=60), st.sampled_from(["cls", "json", "txt"]))
def test_any_bytes_are_a_label_or_none(content, ending):
    try:
        label = read_label(ending, content)
    except LabelError:
        return
    if isinstance(label, str):
        assert label.encode().decode() == label != ""
    else:
        assert label is None or isinstance(label, int)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ([0, 2, None], ["0", "1", "2"], [0, 2, -1]),
        ([-1, 1, 0], ["-1", "0", "1"], [0, 2, 1]),
        ([20240101000000, 7, 20240101000000], ["7", "20240101000000"], [1, 0, 1]),
        (["dog", "cat", None], ["cat", "dog"], [1, 0, -1]),
        (["dog", 3], ["3", "dog"], [1, 0]),
        ([None, None], [], [-1, -1]),
    ],
)
def test_numbers_of_labels(labels, classes, numbers):
    assert number_labels(labels) == (classes, numbers)


def test_memory_does_not_grow_with_a_labels_value():
    tracemalloc.start()
    try:
        number_labels([10**9, 3 * 10**8])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("texts", "captions"),
    [
        (["cat", "dog"], False),
        ([f"class {number % 5}" for number in range(40)], False),
        ([f"picture {number}" for number in range(10)], False),  # too few to tell
        ([f"picture {number}" for number in range(11)], True),
        (["cat", "a picture\nof a dog"], True),
        (["a " * 60], True),
        (list(range(40)), False),
        ([], False),
    ],
)
def test_captions_are_told_from_classes(texts, captions):
    assert are_captions(texts) is captions
