"""Pieces of named tensors: the share of a rank in a state that is spread over all ranks, and the files that hold it.

A state is a set of named tensors. A *span* is a range of consecutive elements of one flattened tensor. The share of a
rank is a list of spans with their elements. The shares of all ranks tile the state: together the ranks write every
element once, and no rank gathers the whole state. A span contains its position, so another number of ranks can read
the state in other spans.

A part is a safetensors file of one-dimensional tensors `NAME@START`.
"""

import io
import json
import mmap
import struct
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from ebmscale.address import Address
from ebmscale.errors import DamagedError, StorageError

PART_BYTES = 8 * 2**20
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Span(NamedTuple):
    """The elements start, ..., start + length - 1 of the flattened tensor `name`."""

    name: str
    start: int
    length: int

    @property
    def key(self) -> str:
        """The name of these elements in a part, `NAME@START`."""
        return f"{self.name}@{self.start}"


class Piece(NamedTuple):
    """A span with its elements (length,). They are a view into the live state: copy them to keep them."""

    span: Span
    values: Tensor


def piece(name: str, values: Tensor, start: int = 0) -> Piece:
    """All elements of a tensor as the piece of `name` that begins at `start`."""
    flat = values.detach().reshape(-1)
    return Piece(Span(name, start, flat.numel()), flat)


def share_of(pieces: Sequence[Piece], rank: int, size: int) -> list[Piece]:
    """The share of a rank in pieces that all `size` ranks hold whole: consecutive elements, as many for every rank."""
    total = sum(one.span.length for one in pieces)
    first, last = total * rank // size, total * (rank + 1) // size
    share, at = [], 0
    for (name, start, length), values in pieces:
        low, high = max(first - at, 0), min(last - at, length)
        if low < high:
            share.append(Piece(Span(name, start + low, high - low), values[low:high]))
        at += length
    return share


def in_parts(pieces: Iterable[Piece], part_bytes: int = PART_BYTES) -> list[list[Piece]]:
    """Pieces in groups of at most `part_bytes` bytes, in their order. Long pieces are cut."""
    groups: list[list[Piece]] = [[]]
    room = part_bytes
    for (name, start, length), values in pieces:
        at = 0
        while at < length:
            count = min(length - at, room // values.element_size())
            if count == 0:
                groups.append([])
                room = part_bytes
                continue
            groups[-1].append(Piece(Span(name, start + at, count), values[at : at + count]))
            at += count
            room -= count * values.element_size()
    return [group for group in groups if group]


def assemble(wanted: Sequence[Span], found: Iterable[Piece]) -> dict[Span, Tensor]:
    """The elements of every wanted span, collected from the pieces that overlap it.

    Raises:
        DamagedError: some elements are in no piece.
    """
    values: dict[Span, Tensor] = {}
    missing = {span: span.length for span in wanted}
    by_name: dict[str, list[Span]] = {}
    for span in wanted:
        by_name.setdefault(span.name, []).append(span)
    for source, elements in found:
        for span in by_name.get(source.name, ()):
            first, last = max(source.start, span.start), min(source.start + source.length, span.start + span.length)
            if first < last:
                if span not in values:
                    values[span] = torch.empty(span.length, dtype=elements.dtype)
                values[span][first - span.start : last - span.start] = elements[
                    first - source.start : last - source.start
                ]
                missing[span] -= last - first
    lacking = [span for span, count in missing.items() if count]
    if lacking:
        raise DamagedError(f"{lacking[0].name} is incomplete: {missing[lacking[0]]} of its elements were not saved.")
    return values


class PartImage:
    """The content of a part in memory. The memory is reused, so a snapshot is one copy.

    New memory costs page faults, which take many times as long as the copy. Reuse and huge pages avoid them.
    """

    def __init__(self, pieces: Sequence[Piece]):
        pieces = sorted(pieces, key=lambda one: -one.values.element_size())  # keeps every tensor aligned
        header: dict[str, dict[str, Any]] = {}
        at = 0
        for span, values in pieces:
            end = at + values.nbytes
            header[span.key] = {"dtype": _DTYPES[values.dtype], "shape": [span.length], "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        begin = 8 + len(text)
        self.layout = layout_of(pieces)
        self.spans = [one.span for one in pieces]
        self._memory = mmap.mmap(-1, begin + at)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory[:begin] = struct.pack("<Q", len(text)) + text
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._views = {
            one.span.key: whole[begin + first : begin + last].view(one.values.dtype)
            for one in pieces
            for first, last in [header[one.span.key]["data_offsets"]]
        }

    def touch(self) -> None:
        """Writes zeros, so that the page faults happen now and not in the first snapshot."""
        for view in self._views.values():
            view.zero_()

    def fill(self, pieces: Iterable[Piece]) -> None:
        """Copies pieces with the layout of this image into it."""
        for span, values in pieces:
            self._views[span.key].copy_(values)

    def bytes(self) -> bytes:
        """The content of the safetensors file."""
        return bytes(self._memory)


def layout_of(pieces: Iterable[Piece]) -> frozenset[tuple[Span, torch.dtype]]:
    """Spans and dtypes of pieces. Pieces with an equal layout fit the same image."""
    return frozenset((one.span, one.values.dtype) for one in pieces)


def parse_part(name: str, data: bytes) -> list[Piece]:
    """The pieces of a part from its bytes; error messages call it `name`.

    Raises:
        DamagedError: the bytes are not a part.
    """
    pieces = []
    for key, values in parse_tensors(name, data).items():
        tensor, at, start = key.rpartition("@")
        if not at or not start.isascii() or not start.isdigit() or len(start) > 18 or values.dim() != 1:
            raise DamagedError(f"{name} holds {key[:60]!r}, which is not a piece of a tensor.")
        pieces.append(Piece(Span(tensor, int(start), values.numel()), values))
    return pieces


def parse_tensors(name: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file from its bytes; error messages call it `name`.

    Raises:
        DamagedError: the bytes are not a safetensors file, or hold a dtype that ebmscale does not write.
    """
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{name} is not a safetensors file of numbers: {reason}.") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise DamagedError(f"{name} holds {key[:60]!r} as {tensor.dtype}, which ebmscale does not write.")
    return tensors


def tensors_of(url: Address, data: bytes) -> dict[str, Tensor]:
    """The tensors of a file from elsewhere: safetensors, or a state dict of torch, of which only tensors are unpickled.

    Raises:
        StorageError: the bytes are neither.
    """
    if url.suffix == ".safetensors":
        return parse_tensors(url, data)
    try:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # foreign bytes may raise anything
        tensors = None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise StorageError(f"{url} is not a file of tensors alone; give safetensors or a state dict.")
    return tensors


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of every tensor."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def check_fit(
    found: Mapping[str, Sequence[int]],
    expected: Mapping[str, Sequence[int]],
    what: str,
    optional: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> None:
    """Compares names and shapes of saved tensors with those of the module that loads them.

    Args:
        found: shapes of the saved tensors.
        expected: shapes of the tensors of the module.
        what: what error messages call the saved tensors.
        optional: shapes of tensors that may be missing.

    Raises:
        DamagedError: tensors are missing, unexpected, or of another shape.
    """
    expected = {**expected, **{name: size for name, size in optional.items() if name in found}}
    shapes, own = ({name: tuple(size) for name, size in one.items()} for one in (expected, found))
    wrong = sorted(name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name))
    if wrong:
        raise DamagedError(
            f"The tensors of {what} do not fit the configuration: {len(wrong)} are missing or of another shape, "
            f"such as {wrong[0][:60]!r}."
        )


def whole_spans(shapes: Mapping[str, Sequence[int]]) -> list[Span]:
    """The spans of whole tensors, from the shapes by name."""
    return [Span(name, 0, torch.Size(shape).numel()) for name, shape in shapes.items()]
