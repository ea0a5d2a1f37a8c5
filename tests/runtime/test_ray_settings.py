"""The configuration's `ray` block, and how its settings reach Ray; no cluster is started."""

import subprocess
import sys

import pytest

from ebmscale.config import RunConfig, changed_keys, parse_config
from ebmscale.errors import ConfigError
from ebmscale.runtime.ray_controller import failure_of
from ebmscale.runtime.ray_driver import with_devices
from ebmscale.runtime.ray_session import given_address, import_ray
from ebmscale.runtime.ray_train import _collective_timeout_s
from tests.runtime.local_cluster import ROOT

TEXT = "run: {name: a}\ndata: {url: /data}\ntrain: {max_samples: 1}"


def config(*overrides: str) -> RunConfig:
    return parse_config(TEXT, overrides)


@pytest.mark.parametrize(("text", "least", "most"), [("0", 0, 0), ("3", 3, 3), ("[2, 8]", 2, 8), ("[1, 1]", 1, 1)])
def test_numbers_of_workers(text, least, most):
    block = config(f"ray.num_workers={text}").ray
    assert (block.least_workers, block.most_workers) == (least, most)


@pytest.mark.parametrize("text", ["-1", "two", "[2]", "[2, 1]", "[0, 2]", "[1, 2, 3]", "1.5", "{}"])
def test_what_is_no_number_of_workers(text):
    with pytest.raises(ConfigError, match="num_workers"):
        config(f"ray.num_workers={text}")


def test_a_run_may_go_on_elsewhere():
    old, new = config(), parse_config(config("ray.num_workers=[2, 8]", "ray.max_failures=9").dump())
    assert new.ray.num_workers == (2, 8)
    assert changed_keys(old, new) == []


class Cluster:
    """What is asked of Ray."""

    def __init__(self, gpus: float):
        self.gpus = gpus

    def cluster_resources(self):
        return {"CPU": 8.0, "GPU": self.gpus}


@pytest.mark.parametrize(
    ("gpus", "overrides", "expected"),
    [
        (0, [], ("cpu", 0)),
        (4, [], ("cuda", 1)),
        (4, ["device=cpu"], ("cpu", 0)),
        (4, ["ray.gpus_per_worker=0"], ("cpu", 0)),
        (0, ["device=cuda"], ("cuda", 1)),
        (4, ["ray.gpus_per_worker=2"], ("cuda", 2)),
    ],
)
def test_devices(gpus, overrides, expected):
    found = with_devices(config("ray.num_workers=2", *overrides), Cluster(gpus))
    assert (found.device, found.ray.gpus_per_worker) == expected


def test_threads_are_the_cores_of_a_worker_unless_they_are_given():
    assert with_devices(config("ray.cpus_per_worker=4"), Cluster(0)).num_threads == 4
    assert with_devices(config("ray.cpus_per_worker=0.5"), Cluster(0)).num_threads == 1
    assert with_devices(config("ray.cpus_per_worker=4", "num_threads=2"), Cluster(0)).num_threads == 2


def test_cuda_without_gpus_is_refused():
    with pytest.raises(ConfigError, match="gpus_per_worker is 0"):
        with_devices(config("device=cuda", "ray.gpus_per_worker=0"), Cluster(4))


def test_collectives_outlast_every_limit():
    limits = config("ray.limits={setup_s: 10, update_s: 20, chain_s: 30, checkpoint_s: 40}")
    assert _collective_timeout_s(limits) > 40
    assert _collective_timeout_s(config("ray.limits.chain_s=0")) > 10**5


def test_addresses(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert given_address(config().ray) is None
    assert given_address(config("ray.address=local").ray) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert given_address(config().ray) == "10.0.0.1:6379"
    assert given_address(config("ray.address=auto").ray) == "auto"
    with pytest.raises(ConfigError, match="ebmscale submit"):
        given_address(config("ray.address=http://10.0.0.1:8265").ray)


def test_without_ray_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"ebmscale\[cluster\]"):
        import_ray()


@pytest.mark.parametrize("name", ["ray_train", "ray_controller", "ray_entry", "board", "preflight"])
def test_what_starts_before_the_workers_does_without_torch(name):
    """Driver, controller, board and preflight are processes of their own, one after the other, and torch takes a second
    to import."""
    code = f"import sys, ebmscale.runtime.{name}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_benchmark_does_not_hide_the_package():
    pytest.importorskip("ray")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools' / 'bench')!r}); import ray; ray.ObjectRef"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_how_workers_failed():
    exceptions = pytest.importorskip("ray.exceptions")
    assert failure_of(exceptions.ActorDiedError()).kind == "died"
    assert failure_of(exceptions.ActorUnavailableError("its node has died", None)).kind == "gone"
    assert failure_of(exceptions.RayActorError(preempted=True)).kind == "preempted"
    assert failure_of(RuntimeError("Connection closed by peer [10.0.0.2]")) == (
        "raised",
        "RuntimeError: Connection closed by peer [10.0.0.2]",
    )
