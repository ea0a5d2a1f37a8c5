"""The values that a key takes, in words, from the schema that pydantic makes of its field."""

from typing import Any

_NAMES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "a mapping of names to values",
}
_MANY = {"integer": "whole numbers", "number": "numbers", "string": "texts"}
_UNBOUNDED = 2**63


def allowed(schema: dict[str, Any]) -> str:
    """The values, such as `a number above 0` or `min or max`.

    Args:
        schema: of one field, in the form of JSON Schema.
    """
    if "anyOf" in schema:
        return ", or ".join(allowed(one) for one in schema["anyOf"])
    if "enum" in schema:
        *others, last = map(str, schema["enum"])
        return f"{', '.join(others)} or {last}"
    if schema.get("type") == "array":
        return _list(schema)
    return _NAMES.get(schema.get("type", ""), "any value") + _limits(schema)


def _list(schema: dict[str, Any]) -> str:
    members = schema.get("prefixItems", [schema.get("items", {})])
    if "enum" in members[0]:
        return f"a list of {', '.join(map(str, members[0]['enum']))}"
    many = _MANY.get(members[0].get("type", ""), "values")
    count = f"[{', '.join('ab'[: len(members)])}]: {len(members)}" if "prefixItems" in schema else "[a, b, ...]:"
    return f"{count} {many}{_limits(members[0])}"


def _limits(schema: dict[str, Any]) -> str:
    """The least and the greatest value; the limit of 64 bits is not worth a word."""
    words = [
        (f"at least {schema['minimum']}" if "minimum" in schema else ""),
        (f"above {schema['exclusiveMinimum']}" if "exclusiveMinimum" in schema else ""),
        (f"at most {schema['maximum']}" if "maximum" in schema else ""),
        (f"below {schema['exclusiveMaximum']}" if schema.get("exclusiveMaximum", _UNBOUNDED) < _UNBOUNDED else ""),
    ]
    found = " and ".join(word for word in words if word)
    return f" {found}" if found else " of letters, digits, dots, dashes and underscores" if "pattern" in schema else ""
