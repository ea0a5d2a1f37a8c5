"""Latents of a packed set, written as a packed set of latents."""

import pytest
import torch

import ebmscale
from ebmscale.data.chunks import read_samples
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import select
from ebmscale.errors import ConfigError
from ebmscale.evaluate.encode_parts import EncodeJob, coder_of_config, coder_of_run
from ebmscale.model.pixels import to_pixels
from ebmscale.model.run_folder import run_storage
from ebmscale.runtime.part_job import Workers
from ebmscale.runtime.parts import run_parts
from ebmscale.storage import Storage
from tests.training.test_resume import changed, run_until

AMORTISED = {"start": "encoder", "num_steps": 0}


@pytest.fixture(scope="module")
def several_shards(tmp_path_factory) -> Storage:
    from ebmscale.data.formats import open_source
    from ebmscale.data.pack import pack

    storage = Storage.at(tmp_path_factory.mktemp("set") / "digits")
    pack(open_source("digits", ""), storage, shard_samples=600)
    return storage


def trained(tiny, data, posterior):
    config = changed(tiny, posterior=posterior, train={"max_samples": 320}, data={"url": str(data.url), "format": None})
    run_until(config)
    return run_storage(config)


def whole(storage: Storage) -> tuple[Manifest, torch.Tensor, list[str]]:
    manifest = Manifest.load(storage)
    found = select(manifest, "train", 0.2).find()
    return manifest, read_samples(storage, manifest, found), found.texts()


def encoded(run, data, out, workers=0) -> Storage:
    job = EncodeJob.of(coder_of_run(run), data, out, 0, "cpu")
    run_parts(job, Workers(workers))
    job.join()
    return out


def test_posteriors_have_the_keys_and_labels_of_the_samples_and_are_the_encoders(tiny, several_shards, tmp_path):
    run = trained(tiny, several_shards, AMORTISED)
    out = encoded(run, several_shards, Storage.at(tmp_path / "z"))
    (before, images, keys), (after, latents, same_keys) = whole(several_shards), whole(out)
    assert (after.encoding, after.image_shape, after.dtype) == ("posteriors", (2, 4), "float32")
    assert after.classes == before.classes
    assert keys == same_keys  # so the validation part is the same too
    mean, std = ebmscale.load(str(run.url)).posterior(to_pixels(images))
    assert torch.allclose(latents, torch.stack([mean, std], 1), atol=1e-6)


def test_a_job_continues_at_the_shards_that_are_missing_and_gives_the_same(tiny, several_shards, tmp_path):
    run = trained(tiny, several_shards, {"start": "base", "num_steps": 2})
    one = encoded(run, several_shards, Storage.at(tmp_path / "one"))
    two = Storage.at(tmp_path / "two")
    job = EncodeJob.of(coder_of_run(run), several_shards, two, 0, "cpu")
    job.open()(1)
    assert job.done() == {1}
    encoded(run, several_shards, two, workers=2)
    for file in ("manifest.json", *(shard.file for shard in Manifest.load(one).shards)):
        assert one.read_bytes(file) == two.read_bytes(file)
    assert Manifest.load(one).image_shape == (4,)  # draws at the ends of chains
    assert not two.exists(".encode")


def test_what_cannot_be_encoded_is_refused(tiny, several_shards, tmp_path):
    run = trained(tiny, several_shards, AMORTISED)
    out = encoded(run, several_shards, Storage.at(tmp_path / "z"))
    with pytest.raises(ConfigError, match="holds a packed set already"):
        EncodeJob.of(coder_of_run(run), several_shards, out, 0, "cpu")
    with pytest.raises(ConfigError, match="yet to be trained"):
        coder_of_config(changed(tiny, posterior=AMORTISED))
    with pytest.raises(ConfigError, match="no encoder"):
        coder_of_config(tiny)
