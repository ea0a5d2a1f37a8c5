"""Pieces of tensors: the ranks together save every element once, and any other number of ranks reads it back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from ebmscale.errors import StorageError
from ebmscale.model.pieces import (
    PartImage,
    Piece,
    Span,
    assemble,
    in_parts,
    layout_of,
    parse_part,
    piece,
    share_of,
)

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def tensors(sizes: list[int]) -> list[Piece]:
    return [
        piece(f"t{i}", torch.randn(size, generator=torch.Generator().manual_seed(i))) for i, size in enumerate(sizes)
    ]


@given(sizes=SIZES, writers=st.integers(1, 7), readers=st.integers(1, 7), part_bytes=st.integers(8, 200))
def test_what_any_ranks_wrote_any_others_read(sizes: list[int], writers: int, readers: int, part_bytes: int) -> None:
    whole = tensors(sizes)
    shares = [share_of(whole, rank, writers) for rank in range(writers)]
    counts = [sum(one.span.length for one in share) for share in shares]
    assert sum(counts) == sum(sizes)
    assert max(counts) - min(counts) <= 1
    files = [part for share in shares for part in in_parts(share, part_bytes)]
    assert all(sum(one.values.nbytes for one in part) <= part_bytes for part in files)
    read = [one for index, part in enumerate(files) for one in parse_part(f"part {index}", written(part))]
    for rank in range(readers):
        mine = share_of(whole, rank, readers)
        found = assemble([one.span for one in mine], read)
        assert all(torch.equal(found[one.span], one.values) for one in mine)


def written(part: list[Piece]) -> bytes:
    image = PartImage(part)
    image.fill(part)
    return image.bytes()


def test_a_part_is_a_safetensors_file_of_every_type() -> None:
    values = {
        "a": torch.arange(3), "b": torch.randn(5).bfloat16(), "c": torch.randn(2, 3), "d": torch.tensor([True, False]),
        "e": torch.randn(()).double(),
    }  # fmt: skip
    found = load(written([piece(name, value) for name, value in values.items()]))
    assert {key: value.dtype for key, value in found.items()} == {f"{k}@0": v.dtype for k, v in values.items()}
    assert all(torch.equal(found[f"{key}@0"], value.reshape(-1)) for key, value in values.items())


def test_a_snapshot_is_not_touched_by_later_updates() -> None:
    live = torch.ones(4)
    image = PartImage([piece("w", live)])
    image.touch()
    image.fill([piece("w", live)])
    live.zero_()
    (saved,) = parse_part("w", image.bytes())
    assert torch.equal(saved.values, torch.ones(4))
    image.fill([piece("w", live)])  # the memory is reused for the next snapshot
    assert torch.equal(parse_part("w", image.bytes())[0].values, live)
    assert image.layout == layout_of([piece("w", live)])


def test_elements_that_nobody_saved_are_named() -> None:
    with pytest.raises(StorageError, match="w is incomplete: 2 of its elements were not saved"):
        assemble([Span("w", 0, 4)], [Piece(Span("w", 0, 2), torch.zeros(2))])


def test_what_is_no_part_is_named() -> None:
    with pytest.raises(StorageError, match="file is not a safetensors file"):
        parse_part("file", b"12345678 garbage")
