"""Images of 64x64 and 128x128 pixels: the configuration that `ebmscale init` writes for them trains without trouble."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import ebmscale
from ebmscale.config import parse_config
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.forecast.first_config import first_config
from ebmscale.model.run_folder import run_storage
from ebmscale.report.run_report import write_report
from ebmscale.storage import Storage
from ebmscale.training.metrics import EVENTS_FILE, GUARD_FILE, read_lines
from tests.training.test_resume import run_until

CIFAR = Path("../shared/data/cifar10/cifar10.npz")


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason="the images of ../shared/data are not here")
@pytest.mark.parametrize(("side", "num_samples", "most_error"), [(64, 6_000, 0.12), (128, 3_000, 0.15)])
def test_upscaled_images_train(side: int, num_samples: int, most_error: float, tmp_path: Path) -> None:
    with np.load(CIFAR) as arrays:
        x = torch.from_numpy(arrays["x_train"][:2_000])
    x = x if x.shape[1] == 3 else x.permute(0, 3, 1, 2)
    large = interpolate(x.float(), size=(side, side), mode="bilinear", antialias=True).round().clamp(0, 255)
    np.save(tmp_path / "large.npy", large.to(torch.uint8).numpy())
    data = Storage.at(tmp_path / "data")
    pack(open_source("npy", str(tmp_path / "large.npy")), data)
    text = first_config(Manifest.load(data), str(tmp_path / "data"), False, num_samples)
    short = ["train.batch_size=32", "stages.max_stages=1", "stages.evidence_samples=64", "metrics.tensorboard=false"]
    config = parse_config(text, [f"storage.url={tmp_path / 'runs'}", "num_threads=1", *short])
    assert config.model.generator.form == "residual"
    run_until(config)
    run = run_storage(config)
    errors = [event["held_out_mse"] for event in read_lines(run, EVENTS_FILE)]
    assert errors[-1] < most_error
    assert not run.exists(GUARD_FILE) or not read_lines(run, GUARD_FILE)
    model = ebmscale.load(run.url)
    assert model.sample(2).shape == (2, 3, side, side)
    write_report(run)
    assert run.exists("report.html")
