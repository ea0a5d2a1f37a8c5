"""What a cluster can lose in mid-update, and what a run makes of it: the same final state as with nothing lost."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.conftest import MID, RESUMED, undisturbed
from tests.runtime.local_cluster import LocalCluster, final_state, running, train_command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

TWO = "ray.num_workers=2"
WORKER = "ray::RayTrainWorker"


@pytest.fixture
def three(make_cluster: Callable[..., LocalCluster]) -> Iterator[LocalCluster]:
    """Three nodes of one CPU."""
    cluster = make_cluster(3, "--cpus", "1")
    yield cluster
    cluster.down()


def test_a_killed_machine_is_replaced_by_another(
    three: LocalCluster, make_config: Callable[..., Path], straight: dict[str, Any], tmp_path: Path
) -> None:
    with running(three.command(*train_command(make_config("machine"), TWO))) as run:
        run.wait_for(MID)
        used = [node for node in (2, 1) if three.processes(WORKER, node)]
        three.kill(used[0])
        run.wait_for("^lost: ")
        run.wait_for(f"{RESUMED}.* 2 worker")
        assert run.end() == 0, run.text
    assert final_state(tmp_path / "runs" / "machine") == straight


def test_a_killed_raylet_is_a_lost_machine(
    three: LocalCluster, make_config: Callable[..., Path], straight: dict[str, Any], tmp_path: Path
) -> None:
    with running(three.command(*train_command(make_config("raylet"), TWO))) as run:
        run.wait_for(MID)
        used = [node for node in (2, 1) if three.processes(WORKER, node)]
        [raylet] = [pid for pid in three.processes("", used[0]) if Path(f"/proc/{pid}/comm").read_text() == "raylet\n"]
        os.kill(raylet, signal.SIGKILL)
        run.wait_for(f"{RESUMED}.* 2 worker")
        assert run.end() == 0, run.text
    assert final_state(tmp_path / "runs" / "raylet") == straight


def test_a_killed_driver_takes_its_workers_along_and_the_same_command_goes_on(
    pair: LocalCluster, make_config: Callable[..., Path], straight: dict[str, Any], tmp_path: Path
) -> None:
    command = pair.command(*train_command(make_config("driver"), TWO))
    with running(command) as run:
        run.wait_for(MID)
        run.process.kill()
    with running(command) as run:
        run.wait_for(f"{RESUMED}.* 2 worker")
        assert run.end() == 0, run.text
    assert final_state(tmp_path / "runs" / "driver") == straight


def test_a_killed_head_is_started_again_and_so_is_the_run(
    make_cluster: Callable[..., LocalCluster],
    make_config: Callable[..., Path],
    straight: dict[str, Any],
    tmp_path: Path,
) -> None:
    cluster = make_cluster(1, "--cpus", "2")
    command = cluster.command(*train_command(make_config("head"), TWO))
    with running(command) as run:
        run.wait_for(MID)
        cluster.kill(0)
        assert run.end() != 0, run.text
    cluster.restart_head()
    with running(command) as run:
        run.wait_for(f"{RESUMED}.* 2 worker")
        assert run.end() == 0, run.text
    cluster.down()
    assert final_state(tmp_path / "runs" / "head") == straight


def test_four_workers_on_three_machines(
    make_cluster: Callable[..., LocalCluster], make_config: Callable[..., Path], tmp_path: Path
) -> None:
    cluster = make_cluster(3, "--cpus", "2")
    finals = []
    for name in ("calm", "lossy"):
        with running(cluster.command(*train_command(make_config(name), "ray.num_workers=4"))) as run:
            run.wait_for(MID)
            if name == "lossy":
                os.kill(cluster.processes(WORKER)[-1], signal.SIGKILL)
                run.wait_for(f"{RESUMED}.* 4 worker")
            assert run.end() == 0, run.text
        finals.append(final_state(tmp_path / "runs" / name))
    cluster.down()
    assert finals[0] == finals[1]


def test_a_run_shrinks_when_a_machine_goes_and_grows_when_one_comes(
    pair: LocalCluster, make_config: Callable[..., Path]
) -> None:
    config = make_config("elastic", train={"max_samples": 10**6}, ray={"num_workers": [1, 2], "resize_every_s": 5})
    with running(pair.command(*train_command(config))) as run:
        run.wait_for("2 worker")
        run.wait_for(MID)
        pair.kill(1)
        run.wait_for("resumed at .* 1 worker")
        before = samples(run.wait_for(r"samples  +\d+/s"))
        pair.add()
        saved = samples(run.wait_for("resumed at .* 2 worker").split("resumed at")[1])
        assert saved >= before  # it saved before it grew
        run.wait_for(r"samples  +\d+/s")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.text


def test_a_notice_makes_the_run_save_and_costs_no_failure(
    three: LocalCluster, make_config: Callable[..., Path], digits_url: str, tmp_path: Path
) -> None:
    longer = {"train": {"max_samples": 32_000}}  # it takes some seconds until a notice is seen
    command = train_command(make_config("notice", **longer), TWO, "ray.max_failures=0")
    with running(three.command(*command)) as run:
        run.wait_for(MID)
        used = [node for node in (2, 1) if three.processes(WORKER, node)]
        with running(three.command(sys.executable, "-c", DRAIN, three.node_address(used[0]))) as drain:
            assert drain.end() == 0, drain.text
        run.wait_for("about to be taken away")
        line = run.wait_for("resumed at .* 2 worker")
        assert samples(line.split("resumed at")[1]) >= 3200
        assert run.end() == 0, run.text
    assert final_state(tmp_path / "runs" / "notice") == undisturbed(digits_url, tmp_path, **longer)


def test_a_hung_rank_is_named_with_its_stack_and_replaced(
    pair: LocalCluster, make_config: Callable[..., Path], straight: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config("hung", ray={"num_workers": 2, "limits": {"chain_s": 10, "update_s": 10}})
    command = [sys.executable, "-m", "tests.runtime.faulty_driver", "hang", "1", "3200", str(tmp_path / "once")]
    with running(pair.command(*command, str(config))) as run:
        run.wait_for(r"rank 1 on .* hangs: \d+ s in posterior after 3,200 samples")
        run.wait_for("in stuck_here")
        run.wait_for(f"{RESUMED}.* 2 worker")
        assert run.end() == 0, run.text
    assert final_state(tmp_path / "runs" / "hung") == straight


def test_a_stopped_rank_is_named_by_one_that_waits_for_it(
    pair: LocalCluster, make_config: Callable[..., Path], straight: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config("frozen", ray={"num_workers": 2, "limits": {"chain_s": 30, "update_s": 30}})
    with running(pair.command(*train_command(config))) as run:
        run.wait_for(MID)
        os.kill(pair.processes(WORKER)[1], signal.SIGSTOP)
        run.wait_for("has stopped answering")
        run.wait_for(f"{RESUMED}.* 2 worker")
        assert run.end() == 0, run.text
    assert final_state(tmp_path / "runs" / "frozen") == straight


def test_a_batch_that_kills_its_worker_each_time_ends_the_run_with_its_keys(
    pair: LocalCluster, make_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = make_config("poison", ray={"num_workers": 2, "max_failures": 100})
    command = [sys.executable, "-m", "tests.runtime.faulty_driver", "die", "1", "3200", str(tmp_path / "never")]
    with running(pair.command(*command, str(config))) as run:
        assert run.end(900) == 6, run.text
    assert "in the batch after 3,200 samples (rank 1 on" in run.text
    assert "look at its samples train-" in run.text


def samples(line: str) -> int:
    """The first number of a line."""
    return int(line.split(maxsplit=1)[0].replace(",", ""))


DRAIN = """
import sys, time, ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
[node] = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == sys.argv[1]]
client = GcsClient(address=ray.get_runtime_context().gcs_address)
accepted, why = client.drain_node(
    node, autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "spot", (int(time.time()) + 90) * 1000
)
print(accepted, why)
sys.exit(not accepted)
"""
