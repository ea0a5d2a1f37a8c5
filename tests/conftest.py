import os
from pathlib import Path

import pytest
import s3fs
import torch
from hypothesis import HealthCheck, settings

from ebmscale.config import RunConfig, parse_config
from tests.s3_server import KEY, SECRET, S3Server, missing_programs

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

PATIENCE_S = 400.0
"""For what another process does, on a machine that is busy with other things; nothing waits that long by itself."""

settings.register_profile("busy-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy-machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """One process runs all tests of a file, so that its fixtures are made once, and all folders that start Ray."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if nodeid.startswith(("tests/runtime/", "tests/cluster/")) else super()._split_scope(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """A test that draws from torch's own generator draws the same numbers every time."""
    torch.manual_seed(0)


TINY = """
run: {name: tiny, seed: 3}
data: {url: DATA, format: digits, validation_fraction: 0.2, num_streams: 4, shuffle_window: 16}
model: {latent_dim: 4, generator: {width: 2}, encoder: {width: 2}, ratio: {hidden: [16, 16]}}
posterior: {num_steps: 3, step_size: 0.1}
prior: {num_particles: 512, num_steps: 2, step_size: 0.3, num_chains: 32, equilibrate_steps: 5, sample_steps: 5}
stages:
  {max_stages: 3, updates_per_batch: 2, batch_size: 32, buffer_samples: 256, min_samples: 320, max_samples: 960,
   settle_samples: 320, evidence_every: 160, evidence_samples: 64, significance: 0.01}
train: {batch_size: 32, max_samples: 3200, generator: {rate: 3.0e-3}, ratio: {rate: 3.0e-3}}
checkpoint: {every_samples: 1600}
metrics: {every_samples: 320, tensorboard: false}
"""


@pytest.fixture(scope="session")
def digits_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded digits, packed once."""
    from ebmscale.data.formats import open_source
    from ebmscale.data.pack import pack
    from ebmscale.storage import Storage

    folder = tmp_path_factory.mktemp("data") / "digits"
    pack(open_source("digits", ""), Storage.at(folder))
    return str(folder)


@pytest.fixture
def tiny_text(digits_url: str, tmp_path: Path) -> str:
    """A run of a hundred updates that passes through several stages in seconds, as YAML."""
    return TINY.replace("DATA", digits_url) + f"storage: {{url: {tmp_path / 'runs'}}}\n"


@pytest.fixture
def tiny(tiny_text: str) -> RunConfig:
    return parse_config(tiny_text)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An S3 server with an empty bucket named so; the environment says how to reach it."""
    if missing := missing_programs():
        pytest.skip(f"no S3 server: install the Debian packages of {', '.join(missing)}")
    server = S3Server(tmp_path_factory.mktemp("ceph"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        s3fs.S3FileSystem.clear_instance_cache()  # those of another module's server
        try:
            server.start()
            s3fs.S3FileSystem(endpoint_url=server.url).mkdir("bucket")
            yield server
        finally:
            server.stop()
