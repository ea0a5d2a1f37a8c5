"""Reads JSON and YAML that others wrote: within bounds, strictly, to plain values or to one error sentence.

YAML is read by the core schema of YAML 1.2, with three differences. A mapping's keys are text. The merge key `<<` is
accepted. A plain value that YAML 1.1 and 1.2 read differently (`on`, `010`, `1_000`, `12:30`, `2026-11-29`) is refused,
and the sentence says how to quote it.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ebmscale.errors import EbmscaleError
from ebmscale.yaml_values import (
    MAX_DEPTH,
    MAX_DIGITS,
    YamlReader,
    excerpt,
    is_unicode,
    read_scalar,
    refuser,
    write_yaml,
)

__all__ = ["MAX_DEPTH", "excerpt", "is_unicode", "load_yaml", "read_json", "read_scalar", "read_yaml", "write_yaml"]

_SKIP_JSON = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[^"\[\]{}]+', re.DOTALL)  # strings, and everything else but brackets
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(
    text: str | bytes,
    what: str,
    error: type[EbmscaleError],
    *,
    max_bytes: int = 256 << 20,
    non_finite: bool = False,
) -> Any:
    """The value of a JSON document.

    Args:
        text: the document, in UTF-8; a byte order mark is left out.
        what: the document's name in the sentence, e.g. "the manifest s3://x/manifest.json".
        error: the class of the error.
        max_bytes: how large it may be.
        non_finite: whether NaN and Infinity are accepted, as `json.dumps` writes them; else they are refused.

    Raises:
        EbmscaleError: of the class `error`. It is too large, not UTF-8, not JSON, nested deeper than `MAX_DEPTH`, has
            a key twice or an integer of more than `MAX_DIGITS` digits.
    """

    def refuse(reason: str) -> NoReturn:
        raise error(f"{what} {reason}")

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = counts.most_common(1)[0][0]
            refuse(f"has the key {excerpt(twice)} twice in one mapping.")
        return found

    def constant(name: str) -> float:
        return float(name) if non_finite else refuse(f"holds {name}, which is not a finite number.")

    def floating(digits: str) -> float:
        value = float(digits)
        return value if non_finite or math.isfinite(value) else refuse(f"holds {excerpt(digits)}, which is too large.")

    def integer(digits: str) -> int:
        return int(digits) if len(digits) <= MAX_DIGITS else refuse(f"holds an integer of {len(digits)} digits.")

    text = _as_text(text, max_bytes, refuse)
    if _json_depth_is_over(text):
        refuse(f"is nested deeper than {MAX_DEPTH} levels.")
    try:
        value = json.loads(
            text, object_pairs_hook=mapping, parse_constant=constant, parse_float=floating, parse_int=integer
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        refuse("holds half of a surrogate pair, which is not a character.")
    except json.JSONDecodeError as problem:
        refuse(f"is not valid JSON: line {problem.lineno}, column {problem.colno}: {problem.msg}.")
    return value


def read_yaml(text: str | bytes, what: str, error: type[EbmscaleError], *, max_bytes: int = 1 << 20) -> Any:
    """The value of a YAML document, None if it is empty; for the arguments see `read_json`.

    Raises:
        EbmscaleError: of the class `error`. It is too large, not UTF-8, not YAML, nested deeper than `MAX_DEPTH`, has
            a key twice, a value that could mean two things, a tag, or aliases of more than `MAX_COPIES` values.
    """
    text = _as_text(text, max_bytes, refuser(what, error))
    return YamlReader(text, what, error).document()


def load_yaml(path: str | Path, what: str, error: type[EbmscaleError], *, max_bytes: int = 1 << 20) -> Any:
    """`read_yaml` of a local file, of which at most `max_bytes` + 1 bytes are read.

    Raises:
        EbmscaleError: of the class `error`, as `read_yaml`, or the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as problem:
        raise error(f"cannot read {what}: {problem.strerror or problem}.") from None
    return read_yaml(content, what, error, max_bytes=max_bytes)


def _as_text(text: str | bytes, max_bytes: int, refuse: Callable[[str], NoReturn]) -> str:
    """The document as text without a byte order mark."""
    try:
        content = text if isinstance(text, bytes) else text.encode()
        if len(content) > max_bytes:
            refuse(f"has more than {max_bytes} bytes; a larger one is not read.")
        text = content.decode()
    except UnicodeError:
        refuse("is not a text file in UTF-8.")
    return text.removeprefix("\ufeff")


def _json_depth_is_over(text: str) -> bool:
    """Whether brackets are nested deeper than `MAX_DEPTH`."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _SKIP_JSON.sub("", text):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False
