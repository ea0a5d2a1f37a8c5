"""Arrays of every type: used as the numbers that they are, or refused for the reason that is so."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ebmscale.data.arrays import as_float64, as_numbers
from ebmscale.errors import DataError

VALUES = np.arange(12).reshape(4, 3)


@pytest.mark.parametrize(
    "values",
    [
        *(VALUES.astype(kind) for kind in (">f4", "<f4", ">f8", "f2", "i1", "u1", ">i2", ">u4", "i8", "u8", ">u8")),
        VALUES.astype(np.longdouble),
        np.asfortranarray(VALUES),
        np.ma.masked_array(VALUES, mask=False),
        np.repeat(VALUES, 2, axis=1)[:, ::2],
        VALUES[::-1][::-1],
        VALUES.tolist(),
        torch.tensor(VALUES),
        torch.tensor(VALUES, dtype=torch.bfloat16),
        torch.tensor(VALUES, dtype=torch.float16, requires_grad=True),
    ],
    ids=lambda values: str(getattr(values, "dtype", "list")),
)
def test_real_numbers_of_every_type_and_order_are_used(values):
    found = as_float64(values, "p")
    assert found.dtype == np.dtype(np.float64)
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert np.array_equal(found, VALUES)


def test_a_file_that_is_mapped_into_memory_is_used(tmp_path):
    np.save(tmp_path / "a.npy", VALUES.astype(">f4"))
    assert np.array_equal(as_float64(np.load(tmp_path / "a.npy", mmap_mode="r"), "p"), VALUES)
    assert as_numbers(np.uint8(VALUES), "p").dtype == np.uint8
    assert np.array_equal(as_float64(VALUES > 5, "p"), VALUES > 5)
    assert as_float64(3.0, "p").shape == ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (VALUES + 1j, "complex numbers"),
        (VALUES.astype("c8"), "complex numbers"),
        (torch.tensor(VALUES) * 1j, "complex numbers"),
        (np.array(["2026-11-29"], "datetime64[D]"), "dates or times"),
        (np.array([3], "timedelta64[s]"), "dates or times"),
        (np.array([{}, 1], object), "type object"),
        (np.array(["a"]), "not an array of numbers"),
        (np.array([b"a"]), "not an array of numbers"),
        (np.zeros(3, [("x", "f4"), ("y", "f4")]), "records of x, y"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), "masked values"),
        (np.full(3, np.longdouble(10) ** 400), "above 1.8e+308"),
        (np.array([2**62, 2**62 + 1, 2**62 + 2]), "subtract the smallest one"),
        (np.array([[2**64 - 1], [2**64 - 3]], np.uint64), "subtract the smallest one"),
        ([[1, 2], [3]], "not an array of numbers"),
        ("text", "not an array of numbers"),
        (None, "not an array of numbers"),
        ({"a": 1}, "not an array of numbers"),
        (torch.eye(3).to_sparse(), "not an array of numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_array_of_real_numbers_is_refused_for_what_it_is(values, said):
    with pytest.raises(DataError, match=rf"^p .*{re.escape(said)}") as caught:
        as_float64(values, "p")
    assert str(caught.value).endswith(".")


def test_large_whole_numbers_that_spread_far_are_used():
    stamps = np.arange(0, 10**15, 10**13) + 1_700_000_000 * 10**9
    assert np.allclose(as_float64(stamps, "p"), stamps.astype(np.float64), rtol=0, atol=256)
    assert as_float64(np.full((5, 2), 2**62), "p")[0, 0] == 2.0**62


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(arrays.array_dtypes() | arrays.scalar_dtypes(), arrays.array_shapes(max_dims=3, max_side=4)))
def test_any_array_ends_in_numbers_or_a_sentence(values):
    try:
        found = as_float64(values, "p")
    except DataError:
        return
    assert found.dtype == np.float64
    assert found.shape == values.shape


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200), st.sampled_from([".npy", ".npz"]), st.booleans())
def test_any_file_of_arrays_ends_in_numbers_or_a_sentence(content, ending, with_head):
    from ebmscale.ratios.read import read_array

    head = {".npy": b"\x93NUMPY\x01\x00", ".npz": b"PK\x03\x04"}[ending] if with_head else b""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a{ending}"
        file.write_bytes(head + content)
        with pytest.raises(DataError, match=r"\.$"):
            read_array(str(file))
