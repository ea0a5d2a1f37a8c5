"""The values of a YAML document, within bounds; see `ebmscale.documents`, which is what others call.

A plain value that YAML 1.1 and 1.2 read differently (`on`, `010`, `1_000`, `12:30`, `2026-11-29`) is refused, and the
sentence says how to quote it.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import yaml

from ebmscale.errors import EbmscaleError

MAX_DEPTH = 64
"""How deep lists and mappings may be nested."""

MAX_COPIES = 10_000
"""How many values the aliases of a YAML document may stand for together."""

MAX_DIGITS = 100
"""How many digits an integer may have: the states of generators of random numbers have 40."""

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"([-+]?)0+([0-9]+)")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_YAML_1_1 = yaml.resolver.Resolver()
_NUMBER = ("a number", ", or write the number in plain digits")
_MEANINGS = {
    "bool": ("true or false", ", or write true or false"),
    "timestamp": ("a date", ""),
    "int": _NUMBER,
    "float": _NUMBER,
}
_STR_TAG = "tag:yaml.org,2002:str"


def read_scalar(text: str, what: str, error: type[EbmscaleError]) -> Any:
    """The value of a plain YAML scalar: a number, true, false, null or text, as `read_yaml` reads it.

    Raises:
        EbmscaleError: of the class `error`. The text could mean two things, or has too many digits.
    """
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    refuse = refuser(what, error)
    quoted = f"quote it as '{excerpt(text)}' for the text"
    if _LEADING_ZERO.fullmatch(text):
        number = _LEADING_ZERO.sub(r"\1\2", text)
        refuse(f"holds {excerpt(text)}, which could be octal: write {excerpt(number)}, or {quoted}.")
    if _INT.fullmatch(text):
        if len(text) > MAX_DIGITS:
            refuse(f"holds an integer of {len(text)} digits.")
        return int(text, 0)
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
        refuse(f"holds {excerpt(text)}, which is not a finite number; {quoted}.")
    if _FLOAT.fullmatch(text):
        return float(text)
    tag = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))
    if tag != _STR_TAG:
        meaning, instead = _MEANINGS.get(tag.rpartition(":")[2], ("something else in YAML", ""))
        refuse(f"holds {excerpt(text)}, which could be text or {meaning}: {quoted}{instead}.")
    return text


def write_yaml(value: Any) -> str:
    """Plain values as YAML that `read_yaml` reads as the same values, in the order they have."""
    return yaml.dump(value, Dumper=_YamlWriter, sort_keys=False)


class _YamlWriter(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else than text; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _written_text(writer: _YamlWriter, text: str) -> yaml.ScalarNode:
    number = _INT.fullmatch(text) or _FLOAT.fullmatch(text) or _LEADING_ZERO.fullmatch(text)
    return writer.represent_scalar(_STR_TAG, text, style="'" if number else None)


_YamlWriter.add_representer(str, _written_text)


class YamlReader:
    """Values from the events of a document. The parser of events is a loop, so no depth makes it fail."""

    def __init__(self, text: str, what: str, error: type[EbmscaleError]) -> None:
        self._events: Iterator[yaml.Event] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._what, self._error = what, error
        self._line, self._copied = 1, 0
        self._anchors: dict[str | None, Any] = {}

    def document(self) -> Any:
        """The value of the whole document, None if it is empty."""
        try:
            self._next()
            event = self._next()
            value = None if isinstance(event, yaml.StreamEndEvent) else self._value(self._next(), 0)
            if isinstance(event, yaml.DocumentStartEvent):
                self._next()
                if not isinstance(self._next(), yaml.StreamEndEvent):
                    self._refuse("a second document begins; give one.")
        except yaml.MarkedYAMLError as problem:
            mark = problem.problem_mark or problem.context_mark
            line = f"line {mark.line + 1}: " if mark else ""
            raise self._invalid(f"{line}{problem.problem or problem.context}") from None
        except yaml.reader.ReaderError as problem:
            raise self._invalid(f"the character {problem.character:#06x} may not stand in it") from None
        except (ValueError, OverflowError):  # an escape that is not a character, a directive with a long number
            raise self._invalid(f"after line {self._line}: an escape or a directive cannot be read") from None
        return value

    def _next(self) -> yaml.Event:
        event = next(self._events)
        if event.start_mark is not None:
            self._line = event.start_mark.line + 1
        return event

    def _value(self, event: yaml.Event, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                self._refuse(f"the alias *{excerpt(event.anchor or '')} has no anchor that ends before it.")
            return self._copy(self._anchors[event.anchor], depth)
        if isinstance(event, yaml.ScalarEvent):
            value: Any = self._scalar(event)
        else:
            self._check_depth(depth)
            if isinstance(event, yaml.CollectionStartEvent) and event.tag is not None:
                self._refuse(f"leave out the tag {excerpt(event.tag)}.")
            value = self._list(depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(depth)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _copy(self, value: Any, depth: int) -> Any:
        """An alias's value, which must leave the document within the bounds that it has without aliases."""
        self._copied += 1
        if self._copied > MAX_COPIES:
            self._refuse(f"the aliases stand for more than {MAX_COPIES} values; write out fewer.")
        if not isinstance(value, list | dict):
            return value
        self._check_depth(depth)
        if isinstance(value, list):
            return [self._copy(one, depth + 1) for one in value]
        return {key: self._copy(one, depth + 1) for key, one in value.items()}

    def _check_depth(self, depth: int) -> None:
        if depth == MAX_DEPTH:
            self._refuse(f"it is nested deeper than {MAX_DEPTH} levels.")

    def _list(self, depth: int) -> list[Any]:
        values = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            values.append(self._value(event, depth + 1))
        return values

    def _mapping(self, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._refuse("a key must be text.")
            key = self._text(event)
            if key in lines:
                self._refuse(f"the key {excerpt(key)} is given a second time (first on line {lines[key]}).")
            lines[key] = self._line
            value = self._value(self._next(), depth + 1)
            if key == "<<" and event.style is None:
                merged = self._merged(value)
            else:
                values[key] = value
        return merged | values

    def _merged(self, value: Any) -> dict[str, Any]:
        """The keys that a merge key << brings: of one mapping, or of a list whose first ones are the strongest."""
        merged: dict[str, Any] = {}
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict):
                self._refuse("the merge key << needs a mapping, or a list of them.")
            merged = one | merged
        return merged

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        if event.tag not in (None, "!", _STR_TAG):
            self._refuse(f"leave out the tag {excerpt(event.tag)}.")
        text = self._text(event)
        is_plain = event.style is None and event.tag is None
        return read_scalar(text, f"{self._what}, line {self._line},", self._error) if is_plain else text

    def _text(self, event: yaml.ScalarEvent) -> str:
        if not is_unicode(event.value):
            self._refuse("half of a surrogate pair is not a character.")
        return event.value

    def _refuse(self, reason: str) -> NoReturn:
        raise self._error(f"{self._what}, line {self._line}: {reason}")

    def _invalid(self, reason: str) -> EbmscaleError:
        return self._error(f"{self._what} is not valid YAML: {' '.join(reason.split())}.")


def refuser(what: str, error: type[EbmscaleError]) -> Callable[[str], NoReturn]:
    """A function that raises the error with a sentence of `what` and a reason."""

    def refuse(reason: str) -> NoReturn:
        raise error(f"{what} {reason}")

    return refuse


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text; surrogates, which stand for other bytes in file names, cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def excerpt(text: str) -> str:
    """Foreign text in a message: at most 60 characters, and as JSON if one of them is unprintable."""
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if text.isprintable() else json.dumps(text)
