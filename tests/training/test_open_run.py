"""What opening a run does with its data (a cache for remote ones, a refusal of no images) and its precision."""

import logging

import numpy as np
import pytest
import torch

from ebmscale.config import parse_config
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import ConfigError, DataError
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training import precision
from ebmscale.training.opening import open_run
from ebmscale.world import World


@pytest.mark.parametrize("is_remote", [False, True])
def test_remote_data_are_kept_in_the_cache(digits_url, tiny_text, tmp_path, is_remote):
    local, copy, folder = Storage.at(digits_url), Storage.at(f"memory://{tmp_path.name}"), tmp_path / "cache"
    shards = Manifest.load(local).shards  # other tests may have left features of the set beside it
    for name in ("manifest.json", *(name for shard in shards for name in (shard.file, shard.index_file))):
        copy.publish(name, local.read_bytes(name))
    url = copy.url if is_remote else digits_url
    run = open_run(parse_config(tiny_text, [f"data.url={url}", f"data.cache={folder}"]), World.alone(), StopSignal())
    next(run.batches())
    run.stream.close()
    copy.delete("")
    assert any(folder.glob("*.block")) == is_remote


def test_more_workers_than_streams_are_refused(tiny):
    with pytest.raises(ConfigError, match="5 workers cannot share out 4 streams"):
        open_run(tiny, World(0, 5, World.alone().device), StopSignal())


@pytest.mark.parametrize(("dtype", "shape"), [("float32", (1, 8, 8)), ("uint8", (3, 4, 4, 4))])
def test_arrays_that_are_no_images_are_refused(tiny_text, tmp_path, dtype, shape):
    np.save(tmp_path / "a.npy", np.zeros((40, *shape), dtype))
    pack(open_source("npy", str(tmp_path / "a.npy")), Storage.at(tmp_path / "packed"))
    config = parse_config(tiny_text, [f"data.url={tmp_path / 'packed'}", "data.format=null"])
    with pytest.raises(DataError, match=rf"holds {dtype} arrays of shape .* takes uint8 images \(C, H, W\)"):
        open_run(config, World.alone(), StopSignal())


@pytest.mark.parametrize(("gain", "begun"), [(2.3, "bf16"), (0.01, "fp32")])
def test_precision_auto_is_measured_once_and_kept(tiny, monkeypatch, gain, begun):
    """On another processor the run keeps the precision that it began with."""
    config = tiny.model_copy(update={"precision": "auto"})
    monkeypatch.setattr(precision, "bf16_gain", lambda device: gain)
    run = open_run(config, World.alone(), StopSignal())
    assert run.config.precision == begun
    assert next(run.sampling.model.parameters()).dtype == (torch.bfloat16 if begun == "bf16" else torch.float32)
    run.save()
    run.saver.finish()
    run.close()
    monkeypatch.setattr(precision, "bf16_gain", lambda device: 1 / gain)
    again = open_run(config, World.alone(), StopSignal())
    again.close()
    assert again.config.precision == begun
    other = "fp32" if begun == "bf16" else "bf16"
    with pytest.raises(ConfigError, match="other values of precision"):
        open_run(tiny.model_copy(update={"precision": other}), World.alone(), StopSignal())


def test_emulated_bf16_is_warned_of_and_done(tiny, monkeypatch, caplog):
    monkeypatch.setattr(precision, "bf16_gain", lambda device: 0.012)
    with caplog.at_level(logging.WARNING):
        run = open_run(tiny.model_copy(update={"precision": "bf16"}), World.alone(), StopSignal())
    run.close()
    assert run.config.precision == "bf16"
    assert "only 0.012 times as fast as fp32 ones here: precision=fp32 would be faster" in caplog.text
