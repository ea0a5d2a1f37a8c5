"""The files for `ray up` against the schema and the checks that ship with Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import ROOT, comment_of, read, training_of

NAMES = ("aws.yaml", "gcp.yaml")
autoscaler = pytest.importorskip("ray.autoscaler", reason="needs Ray")
jsonschema = pytest.importorskip("jsonschema", reason="comes with Ray")


def workers(config: dict[str, Any]) -> dict[str, Any]:
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


@pytest.mark.parametrize("name", NAMES)
def test_fits_rays_schema(name: str) -> None:
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(read(name), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read(name) | {"max_worker": 1}, schema)


@pytest.mark.parametrize("name", NAMES)
def test_passes_rays_own_validation_with_its_defaults(name: str) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    filled = util.prepare_config(read(name))
    util.validate_config(filled)
    assert filled["available_node_types"].keys() == read(name)["available_node_types"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_only_spot_nodes_work_and_the_head_does_not(name: str) -> None:
    config = read(name)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "spot" not in str(head["node_config"]).lower()
    assert "preemptible" not in str(head["node_config"])
    assert any("GPU" in kind["resources"] for kind in workers(config).values())
    for kind in workers(config).values():
        node = kind["node_config"]
        if config["provider"]["type"] == "aws":
            assert node["InstanceMarketOptions"] == {"MarketType": "spot"}
        else:  # as in the examples that ship with Ray: a list
            assert {"preemptible": True} in node["scheduling"]
            assert ("guestAccelerators" in node) == ({"onHostMaintenance": "TERMINATE"} in node["scheduling"])
        assert 0 <= kind["min_workers"] <= kind["max_workers"] <= config["max_workers"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_mounted_is_here_and_what_is_installed_is_mounted(name: str) -> None:
    config = read(name)
    for local in config["file_mounts"].values():
        assert local.startswith("~/.ray/") or (ROOT / local).exists(), local
    mounted = {Path(remote).name for remote in config["file_mounts"]}
    assert {"pyproject.toml", "README.md", "ebmscale", "configs"} <= mounted
    assert any("/home/ray/ebmscale[cluster]" in command for command in config["setup_commands"])
    assert any("RAY_AUTH_MODE=token" in option for option in config["docker"]["run_options"])


@pytest.mark.parametrize("name", NAMES)
def test_the_metrics_port_and_the_autoscaler_are_on(name: str) -> None:
    config = read(name)
    head, worker = config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert all("--metrics-export-port=8080" in command for command in (head, worker))
    assert "--dashboard-host=127.0.0.1" in head


@pytest.mark.parametrize("name", NAMES)
def test_the_command_in_the_comment_is_a_run(name: str) -> None:
    config = training_of(comment_of(name).split("&")[-1].split(" Workers")[0].split(" Put")[0])
    assert config.ray.most_workers <= read(name)["max_workers"]
