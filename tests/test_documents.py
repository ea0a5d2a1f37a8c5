"""JSON and YAML of others: values or a sentence, within bounds, and nothing read as what was not written."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmscale.documents import MAX_DEPTH, read_json, read_scalar, read_yaml, write_yaml
from ebmscale.errors import ConfigError, DamagedError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def json_of(text):
    return read_json(text, "the note", DamagedError)


def yaml_of(text):
    return read_yaml(text, "the file", ConfigError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "deeper than 64"),
        ('{"a":' * 100_000, "deeper than 64"),
        ('[["]]]",' * 100, "deeper than 64"),
        ("1" * 5000, "5000 digits"),
        ("-" + "1" * 5000, "5001 digits"),
        ("1" * 5000 + ".0", "too large"),
        ("1e999", "too large"),
        ("NaN", "not a finite number"),
        ("[-Infinity]", "not a finite number"),
        ('{"a": {"b": 1, "c": 2, "b": 1}}', "key b twice"),
        ('{"a": 1, "b": 2, "c": 3, "c": 3}', "key c twice"),
        ('{"\\u001b[2J": 1, "\\u001b[2J": 2}', 'key "\\u001b[2J" twice'),
        (b'{"a": "\xff"}', "UTF-8"),
        (json.dumps({"a": 1}).encode("utf-16"), "UTF-8"),
        ("\ud800", "UTF-8"),
        ('"\\ud800"', "surrogate"),
        ('{\n"a": 1,\n', "line 3, column 1"),
        ("", "line 1"),
        (b"[1]" + b" " * 10, "more than 8"),
    ],
)
def test_a_json_document_that_cannot_be_used_ends_in_a_sentence(text, said):
    limits = {"max_bytes": 8} if "more than 8" in said else {}
    with pytest.raises(DamagedError, match=r"^the note ") as caught:
        read_json(text, "the note", DamagedError, **limits)
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")
    assert str(caught.value).isprintable()


def test_json_is_read_as_written():
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json_of(b'\xef\xbb\xbf{"a": ["[[", 1e-3, 2e3, null]}') == {"a": ["[[", 1e-3, 2000.0, None]}
    assert json_of("\ufeff 1") == 1
    assert json_of(deep)
    assert json_of('"\\ud83d\\ude00"') == "\U0001f600"
    assert json_of(str(2**128)) == 2**128
    assert str(read_json("[NaN, -Infinity]", "the log", DamagedError, non_finite=True)) == "[nan, -inf]"


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_every_value_comes_back_from_json_and_from_yaml(value):
    assert json_of(json.dumps(value)) == value
    assert yaml_of(write_yaml(value)) == value


@settings(deadline=None)
@given(st.text() | st.binary() | st.text(alphabet='{}[]",:\\eE+-.0129naN \n'))
def test_any_json_text_ends_in_a_value_or_a_sentence(text):
    with suppress(DamagedError):
        json_of(text)


@settings(deadline=None)
@given(st.text() | st.binary() | st.text(alphabet="{}[]\"',:\\-?!&*#|>%@~<=.0129onxu \n\t"))
def test_any_yaml_text_ends_in_a_value_or_a_sentence(text):
    with suppress(ConfigError):
        yaml_of(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "deeper than 64"),
        ("{a: " * 100_000, "deeper than 64"),
        ("- " * 100_000, "deeper than 64"),
        ("\n".join(" " * i + "a:" for i in range(500)), "deeper than 64"),
        ("a: " + "1" * 5000, "5000 digits"),
        ("a: 1\nb: 2\na: 1\n", "line 3: the key a is given a second time (first on line 1)"),
        ("x: {a: 1, 'a': 2}", "line 1: the key a"),
        ("a: 1\nc: *b\n", "line 2: the alias *b has no anchor"),
        ("\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9) if i else 1}]" for i in range(30)), "more than 10000"),
        ("\n".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 1}]" for i in range(80)), "line 64: it is nested deeper"),
        ("a: &a [*a]", "alias *a"),
        ("<<: 1", "merge key"),
        ("<<: {a: 1}\n<<: {a: 2}", "line 2: the key << is given a second time"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("a: !!int '3'", "tag"),
        ("{a: 1}: 2", "a key must be text"),
        ("--- 1\n--- 2\n", "second document"),
        ('a: "\\ud800"', "surrogate"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("%YAML 1." + "1" * 5000 + "\n--- a", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: b: c", "not valid YAML: line 1"),
        (b"\xff\xfea\x00", "UTF-8"),
        ("a" * (1 << 20) + "a", "more than 1048576 bytes"),
    ],
)
def test_a_yaml_document_that_cannot_be_used_ends_in_a_sentence(text, said):
    with pytest.raises(ConfigError, match=r"^the file") as caught:
        yaml_of(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("on", "off", "yes", "No", "010", "-007", "00", "1_000", "1_0.5", "0b11", "0x1_f", "12:30", "190:20:30.15"),
        *("2026-11-29", "2026-11-29 12:00:00", "2001-12-14t21:59:43.10-05:00", ".inf", "-.INF", ".nan", "1e999", "="),
    ],
)
def test_a_value_that_could_mean_two_things_is_refused_and_text_in_quotes(text):
    with pytest.raises(ConfigError, match=r"line 2,.*quote it as '") as caught:
        yaml_of(f"b: 1\na: {text}\n")
    assert f"'{text}'" in str(caught.value)
    assert yaml_of(f"a: '{text}'") == yaml_of(f'a: "{text}"') == yaml_of(f"a: !!str {text}") == {"a": text}
    assert yaml_of(write_yaml({"a": text})) == {"a": text}
    with pytest.raises(ConfigError):
        read_scalar(text, "x", ConfigError)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("1e-3", 1e-3),
            ("1E3", 1000.0),
            ("1.", 1.0),
            (".5", 0.5),
            ("-0", 0),
            ("+12", 12),
            ("0x1F", 31),
            ("0o17", 15),
        ),
        *(("true", True), ("False", False), ("~", None), ("null", None), ("", None), ("y", "y"), ("nul", "nul")),
        *(("1.2.3", "1.2.3"), ("v010", "v010"), ("s3://a:9000/b", "s3://a:9000/b"), ("a#b", "a#b"), ("1e", "1e")),
    ],
)
def test_plain_yaml_values_are_those_of_the_core_schema(text, value):
    found = yaml_of(f"a: {text}")["a"]
    assert (type(found), found) == (type(value), value)


def test_keys_are_text_and_an_empty_document_is_nothing():
    assert yaml_of("on: 1\n010: 2\n1: 3\nnull: 4") == {"on": 1, "010": 2, "1": 3, "null": 4}
    assert yaml_of("") is yaml_of("# nothing\n") is yaml_of("---\n") is None
    assert yaml_of(b"\xef\xbb\xbfa: 1") == yaml_of("\ufeffa: 1") == {"a": 1}


def test_aliases_are_copies_and_a_merge_gives_way_to_the_keys_beside_it():
    tree = yaml_of("a: &a {x: 1, y: [2]}\nb: *a\nc: {y: 3, <<: *a, z: 4}\nd: {<<: [{x: 5}, *a]}")
    assert tree == {"a": {"x": 1, "y": [2]}, "b": tree["a"], "c": {"x": 1, "y": 3, "z": 4}, "d": {"x": 5, "y": [2]}}
    tree["a"]["y"].append(6)
    assert tree["b"]["y"] == tree["d"]["y"] == [2]


def test_a_value_that_stands_in_two_places_is_written_twice():
    shared = [1]
    assert yaml_of(write_yaml({"a": shared, "b": shared})) == {"a": [1], "b": [1]}
