"""What is written is what is configured: every place where people give values, and the sentence where it is unclear."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmscale.address import Address
from ebmscale.compare.rows import load_comparison, make_jobs
from ebmscale.config import RunConfig, config_of, known_keys, load_config, parse_config
from ebmscale.errors import ConfigError
from ebmscale.search.space import load_space

MINIMAL = "run: {name: a}\ndata: {url: d}\ntrain: {max_samples: 1000}\n"
ROWS = "name: c\nconfig: run.yaml\nrows:\n  one: {%s}\n"
SPACE = "objectives: [{metric: loss, direction: min}]\nnum_trials: 2\nspace: {%s}\n"
KEYS = list(known_keys(RunConfig))
SCALARS = st.text(max_size=8) | st.sampled_from(["010", "on", "null", "~", "1e-3", "'a'", '"', "[1", "{a: 1}", ".nan"])
TREES = st.recursive(
    SCALARS | st.integers() | st.floats() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def value_of(override, key):
    value = parse_config(MINIMAL, [override])
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize(
    "text",
    [
        *("010", "true", "on", "No", "2026-11-29", "2024_01_15", "1.10", "1e-3", "null", "1_000", "0x10", "12:30"),
    ],
)
def test_the_override_of_a_text_field_is_the_text_that_was_typed(text):
    assert value_of(f"data.url={text}", "data.url") == text
    if ":" not in text:
        assert value_of(f"run.name={text}", "run.name") == text
    if text != "null":
        assert value_of(f"data.held_out.label={text}", "data.held_out.label") == text
    assert parse_config(parse_config(MINIMAL, [f"data.url={text}"]).dump()).data.url == text


@pytest.mark.parametrize(
    "text",
    ["/data/set #2", "x:y", "a: b", "[a]", "{a", "*a", "&a", "!a", "%a", "@a", "`a", " a ", "'a", "#", "a=b", "~"],
)
def test_a_text_field_takes_what_yaml_would_not(text):
    assert value_of(f"storage.url={text}", "storage.url") == text
    assert parse_config(parse_config(MINIMAL, [f"storage.url={text}"]).dump()).storage.url == text


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("run.name='010'", "run.name", "010"),
        ('data.url="a\\tb"', "data.url", Address("a\tb")),
        ("data.source='null'", "data.source", Address("null")),
        ("data.source=null", "data.source", None),
        ("data.source=", "data.source", None),
        ("train.generator.rate=1e-4", "train.generator.rate", 1e-4),
        ("train.max_samples=1e6", "train.max_samples", 1_000_000),
        ("train.max_samples= 64 ", "train.max_samples", 64),
        ("ray.num_workers=[2, 8]", "ray.num_workers", (2, 8)),
        ("ray.num_workers=3", "ray.num_workers", 3),
        ("deepspeed.zero_stage=2", "deepspeed.zero_stage", 2),
        ("prior={base: moments, base_fits: 1}", "prior.base_fits", 1),
        ("profile=true", "profile", True),
        ("ray.gpus_per_worker=null", "ray.gpus_per_worker", None),
    ],
)
def test_other_fields_are_read_as_their_type(override, key, value):
    changes = [override, "stages={start_samples: 640, buffer_samples: 640}"] if key.startswith("prior") else [override]
    config = parse_config(MINIMAL, changes)
    for part in key.split("."):
        config = getattr(config, part)
    assert (type(config), config) == (type(value), value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.max_samples=010000", "write 10000"),
        ("train.max_samples=1_000", "plain digits"),
        ("train.max_samples=12:30", "plain digits"),
        ("train.max_samples=true", "valid integer"),
        ("train.max_samples='64'", "valid integer"),
        ("train.max_samples=64 #5", "valid integer"),
        ("train.max_samples=" + "9" * 5000, "digits"),
        ("train.generator.rate=.inf", "finite"),
        ("train.generator.rate=2026-11-29", "date"),
        ("profile=on", "write true or false"),
        ("profile=1", "valid boolean"),
        ("profile=yes", "true or false"),
        ("profile='true'", "valid boolean"),
        ("deepspeed.zero_stage=true", "zero_stage"),
        ("model.ratio.hidden=[8, 8] # two", "not valid YAML"),
        ("model.ratio.hidden=[8], [9]", "several values"),
        ("model.ratio.hidden=['8']", "valid integer"),
        ("model.ratio.hidden=[true]", "valid integer"),
        ("model.ratio.hidden=" + "[" * 100_000, "deeper"),
        ("prior={base: moments, base: standard}", "second time"),
        ("data.source=~", "write null, or '~'"),
        ("data.url=a\udcff", "not text in UTF-8"),
    ],
)
def test_an_override_of_no_clear_value_is_refused(override, said):
    with pytest.raises(ConfigError, match=r"\.$") as caught:
        parse_config(MINIMAL, [override])
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run: {name: 010}", "quote it as '010'"),
        ("run: {name: 10}", "put the text in quotes"),
        ("run: {name: 1.10}", "put the text in quotes"),
        ("run: {name: true}", "put the text in quotes"),
        ("run: {name: 2026-11-29}", "quote it as '2026-11-29'"),
        ("run: {name: a, seed: '1'}", "valid integer"),
        ("run: {name: a, seed: true}", "valid integer"),
        ("run: {name: a, seed: 1, seed: 2}", "line 1: the key seed is given a second time"),
    ],
)
def test_a_file_of_no_clear_value_is_refused(tmp_path, line, said):
    file = tmp_path / "run.yaml"
    file.write_text(f"{line}\ndata: {{url: d}}\ntrain: {{max_samples: 1000}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("run.seed: 010", "write 10"),
        ("run.seed: 1, run.seed: 2", "second time"),
        ("profile: on", "true or false"),
        ("data.url: 5", "put the text in quotes"),
        ("x: " + "[" * 100_000, "deeper"),
    ],
)
def test_comparisons_are_read_in_the_same_way(tmp_path, values, said):
    (tmp_path / "run.yaml").write_text(MINIMAL)
    file = tmp_path / "rows.yaml"
    file.write_text(ROWS % values)
    with pytest.raises(ConfigError) as caught:
        make_jobs(str(file), None, 1, [])
    assert said in str(caught.value)


def test_a_row_has_the_values_that_its_file_has(tmp_path):
    (tmp_path / "run.yaml").write_text(MINIMAL)
    file = tmp_path / "rows.yaml"
    file.write_text(ROWS % "data.url: 'null #1', data.source: '010', train.generator.rate: 1e-4")
    config = make_jobs(str(file), None, 1, [])[0].config
    assert (config.data.url, config.data.source, config.train.generator.rate) == ("null #1", "010", 1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("train.max_samples: {choice: [010]}", "write 10"),
        ("train.max_samples: {int: [1, 9], int: [2, 3]}", "second time"),
        ("model.generator.form: {choice: [on, off]}", "quote it as 'on'"),
        ("train.ratio.rate: {uniform: ['1', 2]}", "valid number"),
        ("train.ratio.rate: {uniform: [0, .inf]}", "finite"),
        ("x: " + "[" * 100_000, "deeper"),
    ],
)
def test_spaces_are_read_in_the_same_way(tmp_path, values, said):
    file = tmp_path / "space.yaml"
    file.write_text(SPACE % values)
    with pytest.raises(ConfigError) as caught:
        load_space(file)
    assert said in str(caught.value)


@pytest.mark.parametrize("load", [load_config, load_space, lambda path: load_comparison(str(path))])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00", b"a" * 2_000_000, b"&a [*a]", b"[" * 100_000])
def test_a_file_that_is_no_configuration_ends_in_a_sentence(tmp_path, load, content):
    file = tmp_path / "x.yaml"
    file.write_bytes(content)
    for path in (file, tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=r"\.$"):
            load(path)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=5), SCALARS), max_size=3))
def test_any_overrides_end_in_a_configuration_or_a_sentence(pairs):
    with suppress(ConfigError):
        config = parse_config(MINIMAL, [f"{key}={text}" for key, text in pairs])
        assert parse_config(config.dump()) == config


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), TREES, max_size=4))
def test_any_tree_ends_in_a_configuration_or_a_sentence(tree):
    with suppress(ConfigError):
        assert isinstance(config_of(tree, "x"), RunConfig)
    with suppress(ConfigError):
        config = parse_config(MINIMAL + json.dumps(tree)[1:-1].replace('", "', '"\n"'))
        assert parse_config(config.dump()) == config


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_configuration_or_a_sentence(content):
    with suppress(ConfigError):
        parse_config(content)


@pytest.mark.parametrize("value", ["1e-300", "1e308"])
def test_a_number_that_cannot_be_squared_is_refused(value):
    with pytest.raises(ConfigError, match=r"model\.sigma: .* to compute with"):
        load_config("preset:digits", [f"model.sigma={value}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL.replace("train", "trian"), r"unknown key trian; did you mean train\?"),
        (MINIMAL.replace("run", "RUN"), "unknown key RUN; did you mean run"),
        (MINIMAL.replace("name", "nmae"), r"unknown key run\.nmae; did you mean run\.name"),
        ("run.name: a\ndata: {url: d}", r"the key run\.name is written as one word; write run: \{name: \.\.\.\}\."),
        ("run: {name: a}\ndata: {url: d}\ntrain: {}", r"the key train\.max_samples is missing"),
    ],
)
def test_a_required_key_that_is_misspelt_is_named(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(text)
