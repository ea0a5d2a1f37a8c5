from pathlib import Path

import pytest

import ebmscale
from ebmscale.config import parse_config
from ebmscale.runtime.preflight import check_node, lacking
from ebmscale.storage import Storage
from tests.conftest import TINY

NAME = ".ebmscale-preflight-test"


@pytest.fixture
def config(digits_url: str, tmp_path: Path):
    text = TINY.replace("DATA", digits_url) + f"storage: {{url: {tmp_path / 'runs'}}}\n"

    def make(*overrides):
        return parse_config(text, ["ray.num_workers=4", *overrides])

    return make


def check(config, name=NAME, version=ebmscale.__version__):
    return check_node(config, name, "10.0.0.2", version)


@pytest.fixture
def shared(tmp_path):
    Storage.at(tmp_path / "runs" / "tiny").publish(NAME, b"")


@pytest.mark.usefixtures("shared")
def test_a_sound_node_finds_nothing_and_leaves_nothing(config, tmp_path):
    assert check(config()) == ("10.0.0.2", "", "")
    assert [path.name for path in (tmp_path / "runs" / "tiny").iterdir()] == [NAME]


def test_a_folder_of_one_machine_is_told_from_a_shared_one(config):
    result = check(config())
    assert result.error == "StorageError"
    assert "a folder of that machine alone" in result.sentence


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("storage.url=/proc/nowhere", "StorageError", "cannot be written to"),
        ("data={url: /nowhere, num_streams: 4}", "DataError", "/nowhere"),
    ],
)
def test_what_cannot_be_reached_is_named(config, override, error, words):
    result = check(config(override))
    assert (result.error, words in result.sentence) == (error, True), result


@pytest.mark.usefixtures("shared")
def test_shards_that_are_gone_are_a_data_error(config, digits_url, tmp_path):
    Storage.at(tmp_path / "data").publish("manifest.json", Storage.at(digits_url).read_bytes("manifest.json"))
    result = check(config(f"data.url={tmp_path / 'data'}"))
    assert result.error == "DataError"
    assert ".tar" in result.sentence


@pytest.mark.usefixtures("shared")
def test_another_version_is_refused(config):
    assert "0.0.0" in check(config(), version="0.0.0").sentence


def test_what_a_cluster_lacks(config):
    four = config("ray.cpus_per_worker=2")
    assert lacking(four, {"CPU": 8.0}) is None
    sentence = lacking(four, {"CPU": 7.0})
    assert sentence is not None
    assert "4 worker(s) of 2 CPUs need 8, and the cluster has 7" in sentence
    assert lacking(config("ray.num_workers=[1, 8]"), {"CPU": 1.0}) is None
    assert "GPU" in str(lacking(config("ray.gpus_per_worker=1"), {"CPU": 4.0}))
