"""What anyone may have put into a storage: documents and bytes that are nearly right. Shared by the readers' tests."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ebmscale.errors import EbmscaleError

FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
"""For the default run: every reader is tried, none for long."""

ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**30, -(10**30), 0.5, float("nan"), float("inf"), "", "a", "../x",
    "/etc/passwd", "\x1b[31m", "x" * 5000, [], [[]], [1, "a"], [10**9, 10**9], {}, {"a": {}}, ["raw"],
]  # fmt: skip
"""Values of another type, sign or size than is expected."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a document, and to the first of every list."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


@st.composite
def documents(draw: st.DrawFn, sound: Any) -> Any:
    """A sound document with one to three values replaced, taken out or put elsewhere."""
    changed = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        ways = list(places(changed))
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        parent = changed
        for step in way:
            parent = parent[step]
        kind = draw(st.sampled_from(["replace", "remove", "add"]))
        if kind == "replace":
            parent[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "remove":
            del parent[last]
        elif isinstance(parent, dict):
            parent["other"] = copy.deepcopy(draw(st.sampled_from(ODD)))
        else:
            parent.append(copy.deepcopy(draw(st.sampled_from(ODD))))
    return changed


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Sound bytes, cut off, or with some of them overwritten, most often in the header."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data) - 1, 600)) | st.integers(0, len(data) - 1))
        new = draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"9999999"]))
        data[at : at + len(new)] = new
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


def result_or_error(read: Callable[[], Any]) -> None:
    """Runs a reader; anything but a result or an error of one sentence fails the test."""
    sentence = ""
    try:
        read()
    except EbmscaleError as error:
        sentence = str(error)
        assert sentence
    assert len(sentence) < 3000
    assert sentence.isprintable()
