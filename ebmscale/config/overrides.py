"""Overrides `key=value`: a value is read by the type of its field in the schema.

The value of a text field is exactly the text that was typed: `run.name=010` is the name 010, and `storage.url=/a #b` is
a folder with a space. Of a text in quotes the quotes are removed. Every other value is YAML on one line, without
comments.
"""

from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from ebmscale.config.keys import field_types, nested_blocks
from ebmscale.config.removed import REMOVED, new_name
from ebmscale.documents import excerpt, is_unicode, read_scalar, read_yaml
from ebmscale.errors import ConfigError

_LIKE_NULL = ("~", "Null", "NULL")


def apply_override(tree: dict[str, Any], override: str, schema: type[BaseModel]) -> None:
    """Sets one dotted key of the tree, as `key=value` says.

    Raises:
        ConfigError: it is not of this form, or the value could mean two things.
    """
    key, equals, text = override.partition("=")
    what = f"the override '{excerpt(override)}'"
    if not is_unicode(override):
        raise ConfigError(f"{what} is not text in UTF-8; rename the file or folder that it names.")
    if not equals or not key:
        raise ConfigError(f"cannot read {what}: write it as key=value, e.g. train.batch_size=64.")
    key = new_name(key)
    types = frozenset({object}) if key in REMOVED else _types_at(schema, key)
    set_key(tree, key, _value(text, types, what))


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key of the tree to a copy of the value, which later keys may change.

    Raises:
        ConfigError: a part of the key holds a value, not keys.
    """
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        if node.get(parent) is None:
            node[parent] = {}
        if not isinstance(node[parent], dict):
            raise ConfigError(f"the key {excerpt(key)} needs {excerpt(parent)} to hold keys, but it holds a value.")
        node = node[parent]
    node[last] = deepcopy(value)


def _value(text: str, types: frozenset[type], what: str) -> Any:
    if text[:1] in ("'", '"') and len(text) > 1 and text.endswith(text[0]):
        return _flow(text, what)
    if types <= {str, type(None)}:  # also an unknown key, which the schema refuses later
        return _text(text, type(None) in types, what)
    text = text.strip()
    return _flow(text, what) if text[:1] in ("[", "{") else read_scalar(text, what, ConfigError)


def _text(text: str, is_optional: bool, what: str) -> str | None:
    if is_optional and text in ("", "null"):
        return None
    if is_optional and text in _LIKE_NULL:
        raise ConfigError(f"{what} could mean no value or the text {text}: write null, or '{text}' with its quotes.")
    return text


def _flow(text: str, what: str) -> Any:
    """A list, a mapping or text in quotes. In brackets a comment is an error, as it hides the last one."""
    values = read_yaml(f"[{text}]", what, ConfigError)
    if not isinstance(values, list) or len(values) != 1:
        raise ConfigError(f"{what} has several values; write a list as [a, b].")
    return values[0]


def _types_at(schema: type[BaseModel], key: str) -> frozenset[type]:
    """The types of the values that the field at a dotted key takes; none if there is no such field."""
    first, _, rest = key.partition(".")
    fields = {field.alias or name: field for name, field in schema.model_fields.items()}
    field = fields.get(first)
    if field is None:
        return frozenset()
    if not rest or dict in field_types(field.annotation):
        return field_types(field.annotation) if not rest else frozenset({object})
    return frozenset().union(*(_types_at(block, rest) for block in nested_blocks(field.annotation)))
