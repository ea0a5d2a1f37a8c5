"""Labels as others write them, to class names and numbers.

A label is a whole number (also "3.0", "+3", "-1") or a name. Whole numbers from 0 to `LARGEST_NUMBER` stay as they are,
so that two sets with the same labels get the same numbers; others, such as dates, are names. Texts that differ for
nearly every sample are captions and not classes.
"""

import codecs
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Label = str | int

ENDINGS = ("cls", "json", "txt")  # of a label's file; where a sample has several, the first one counts
LABEL_BYTES = 1 << 20  # of a label's file that is read
LARGEST_NUMBER = 65_535  # so that no label makes the list of classes longer
_FIELDS = ("cls", "label", "class")  # of a JSON label, the first that is there
_LONGEST_NAME = 100  # letters; a longer text is a caption
_LONGEST_CLASS = 1000  # letters; a manifest holds no longer ones
_FEW = 10  # labels, which may all be different and still be classes
_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(\.0*)?")


class Numbered(NamedTuple):
    """Labels as numbers.

    Attributes:
        classes: their names.
        labels: for each label its index into the classes, -1 if there is none.
    """

    classes: list[str]
    labels: list[int]


class LabelError(ValueError):
    """A label is there and cannot be read; the text says why."""


def read_label(ending: str, content: bytes) -> Label | None:
    """The label in a file KEY.ENDING; None if the file says none (it is empty, or JSON without a label's field).

    Raises:
        LabelError: it is neither a whole number nor a name.
    """
    if len(content) > LABEL_BYTES:
        raise LabelError(f"is longer than {LABEL_BYTES:,} bytes")
    text = _text(content).strip().strip("\0")
    if ending == "txt":
        return _of_text(text)  # captions may be long
    if ending != "json":
        return _class(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise LabelError("is not JSON") from None
    if isinstance(value, dict):
        value = next((value[name] for name in _FIELDS if name in value), None)
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _class(value.strip())
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and value == int(value)):
        return _class(str(int(value)))
    raise LabelError(f"is {str(value)[:40]!r}, neither a whole number nor a name")


def _text(content: bytes) -> str:
    """UTF-8, with or without its mark, or UTF-16 with its mark; other bytes become escapes."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "backslashreplace")
    return content.decode("utf-8-sig", "backslashreplace")


def _of_text(text: str) -> Label | None:
    if match := _NUMBER.fullmatch(text):
        return int(match[1])
    return text.encode("utf-8", "backslashreplace").decode() or None  # JSON can hold half of a surrogate pair


def _class(text: str) -> Label | None:
    label = _of_text(text)
    if isinstance(label, str) and len(label) > _LONGEST_CLASS:
        raise LabelError(f"is longer than {_LONGEST_CLASS:,} letters")
    return label


def are_captions(texts: Sequence[Label]) -> bool:
    """Whether the labels of a set are free text: long ones, of several lines, or more than half of them different."""
    names = [text for text in texts if isinstance(text, str)]
    if any(len(name) > _LONGEST_NAME or "\n" in name for name in names):
        return True
    return len(names) > len(texts) / 2 and len(texts) > _FEW and len(set(texts)) > len(texts) / 2


def look_alike(classes: Iterable[str]) -> list[str]:
    """A phrase about the first two classes that a reader takes for one, as they differ in case or accents' code."""
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            return [f"classes {other!r} and {name!r} differ only in case, or in how accents are encoded"]
    return []


def number_labels(labels: Iterable[Label | None]) -> Numbered:
    """Class names and numbers of labels; time and memory grow with how many there are, never with their values."""
    labels = list(labels)
    found = {label for label in labels if label is not None}
    if all(isinstance(label, int) and 0 <= label <= LARGEST_NUMBER for label in found):
        classes = [str(number) for number in range(1 + max(map(int, found), default=-1))]
    elif all(isinstance(label, int) for label in found):
        classes = [str(number) for number in sorted(map(int, found))]
    else:
        classes = sorted({str(label) for label in found})
    number_of = {name: number for number, name in enumerate(classes)}
    return Numbered(classes, [-1 if label is None else number_of[str(label)] for label in labels])
