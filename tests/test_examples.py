"""The example with the autoencoder of another library, shortened; skipped where that library is not installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PATIENCE_S
from tests.pages import ROOT

SHORT = (
    "data.num_streams=8 data.shuffle_window=8 data.validation_fraction=0.2 stages.start_samples=2560 "
    "stages.buffer_samples=2560 stages.batch_size=32 stages.max_stages=1 stages.min_samples=640 "
    "stages.max_samples=1280 stages.evidence_every=640 stages.evidence_samples=64 train.batch_size=64 "
    "train.max_samples=4480 prior.num_particles=128 model.ratio.hidden=[8]"
)


@pytest.mark.slow
def test_a_prior_over_the_latents_of_an_autoencoder_of_another_library(tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="pip install diffusers")
    import numpy as np

    for file in ("kl.yaml", "kl_networks.py", "train_kl.py"):
        shutil.copy(ROOT / "configs" / "examples" / file, tmp_path)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (600, 3, 32, 32), np.uint8))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            check=False,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run("-m", "ebmscale", "pack", "npy", "images.npy", "data")
    assert "encoder.pt, decoder.pt" in run("train_kl.py", "data", "5")
    run("-m", "ebmscale", "train", "kl.yaml", "data.url=data", *SHORT.split())
    run("-m", "ebmscale", "sample", "runs/kl", "-n", "4", "--out", "four.png")
    assert (tmp_path / "four.png").read_bytes().startswith(b"\x89PNG")
