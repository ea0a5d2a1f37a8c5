import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY
from tests.runtime.local_cluster import PATIENCE_S, ROOT, LocalCluster, config_file, final_state

# long enough to be hit in the middle, with checkpoints that are not where it is hit
SETTINGS: dict[str, Any] = {
    "train": {"max_samples": 19_200},
    "checkpoint": {"every_samples": 960},
    "metrics": {"every_samples": 320},
}
MID = r"^ +3,200 samples  +\d+/s"  # between the checkpoints at 2,880 and 3,840


def resumed_from(first: int) -> str:
    """A resume at a checkpoint from `first` on: a slow machine gets further before it is hit."""
    return f"resumed at ({'|'.join(f'{samples:,}' for samples in range(first, 19_200, 960))}) samples"


RESUMED = resumed_from(2880)  # after MID


@pytest.fixture(scope="session")
def make_cluster() -> Iterator[Callable[..., LocalCluster]]:
    """A function that starts a cluster; all are stopped at the end."""
    pytest.importorskip("ray.dashboard.modules.job.sdk", reason="needs ray[default]")
    clusters = []

    def make(num_nodes: int, *options: str) -> LocalCluster:
        cluster = LocalCluster(Path(tempfile.mkdtemp(prefix="ebm", dir="/tmp")) / "c")
        clusters.append(cluster)
        cluster.up(num_nodes, *options)
        return cluster

    yield make
    for cluster in clusters:
        cluster.down()
        shutil.rmtree(cluster.folder.parent, ignore_errors=True)


@pytest.fixture(scope="module")
def pair(make_cluster: Callable[..., LocalCluster]) -> Iterator[LocalCluster]:
    """Two nodes of one CPU."""
    cluster = make_cluster(2, "--cpus", "1")
    yield cluster
    cluster.down()


@pytest.fixture
def make_config(digits_url: str, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes the configuration of a run of that name."""

    def make(name: str, **blocks: Any) -> Path:
        text = TINY.replace("DATA", digits_url) + f"storage: {{url: {tmp_path / 'runs'}}}\n"
        return config_file(tmp_path, text, run={"name": name}, **SETTINGS | blocks)

    return make


@pytest.fixture(scope="session")
def straight(digits_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of the run on two processes with nothing in its way, and without Ray."""
    return undisturbed(digits_url, tmp_path_factory.mktemp("straight"))


def undisturbed(digits_url: str, folder: Path, **blocks: Any) -> dict[str, Any]:
    """The final state of a run as `make_config` writes it, on two processes with nothing in its way, without Ray."""
    text = TINY.replace("DATA", digits_url) + f"storage: {{url: {folder}}}\n"
    config = config_file(folder, text, run={"name": "straight"}, **SETTINGS | blocks)
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "ebmscale", "train", str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, timeout=PATIENCE_S, check=True, capture_output=True,
    )  # fmt: skip
    return final_state(folder / "straight")
