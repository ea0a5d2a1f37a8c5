"""The configuration that `ebmscale init` writes: it fits every set of images, says what it holds, and trains."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ebmscale.cli import cli
from ebmscale.config import parse_config
from ebmscale.data.indexes import IndexesInMemory
from ebmscale.data.manifest import Manifest
from ebmscale.data.shard import Shard
from ebmscale.data.shard_index import FRACTIONS
from ebmscale.errors import ConfigError, DataError
from ebmscale.forecast.config_text import name_for
from ebmscale.forecast.first_config import LEAST_IMAGES, default_samples, first_config
from ebmscale.forecast.pack_offer import pack_offer
from ebmscale.storage import Storage
from ebmscale.training.opening import LEAST_HELD_OUT


def manifest(num: int, shape: tuple[int, ...], dtype: str = "uint8", validation: int = 0) -> Manifest:
    """A set of which only the counts are asked for."""

    def shard(part: str, count: int) -> Shard:
        return Shard(f"{part}.tar", part, count, 1, "0" * 64, 0, "0" * 64, 0, (0,) * len(FRACTIONS))

    shards = [shard("train", num)] + ([shard("validation", validation)] if validation else [])
    return Manifest("set", "folder", "raw", shape, dtype, [], shards, {}, IndexesInMemory([]))


@pytest.mark.parametrize("side", [8, 28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("has_gpu", [False, True])
def test_it_is_valid_for_every_size_of_images_and_of_the_set(side: int, channels: int, has_gpu: bool) -> None:
    for num in (LEAST_IMAGES, 300, 4_000, 1_000_000):
        for samples in (None, 1, 5_000):
            text = first_config(manifest(num, (channels, side, side)), "data/my set", has_gpu, samples)
            config = parse_config(text)
            assert config.data.url == "data/my set"
            assert num * config.data.validation_fraction > 2 * LEAST_HELD_OUT
            assert config.train.max_samples > config.stages.start_samples == config.train.generator.stop_samples
            assert config.data.flip == (channels == 3)
    assert text.count("#") > 5


def test_the_length_follows_the_set_and_the_machine() -> None:
    lengths = [default_samples(num, False) for num in (100, 2_000, 4_000, 10**6)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
    assert all(default_samples(num, True) >= default_samples(num, False) for num in (100, 4_000, 10**6))


def test_a_validation_part_is_used_as_it_is() -> None:
    assert "validation_fraction" not in first_config(manifest(300, (3, 64, 64), validation=50), "data/x", False)


@pytest.mark.parametrize("shape", [(16,), (4, 8, 8), (3, 5)])
def test_latents_get_a_configuration_without_a_generator(shape: tuple[int, ...]) -> None:
    config = parse_config(first_config(manifest(5000, shape, "float32"), "data/z", False))
    assert config.model.is_identity
    assert config.model.shape == shape
    assert config.model.ratio.form == ("residual" if len(shape) == 3 else "perceptron")


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        (manifest(10, (3, 64, 64)), DataError, "has 10 images to train on, and at least 80"),
        (manifest(100, (16,), "float32"), DataError, "has 100 latents to train on, and at least 200"),
        (manifest(300, (3, 65, 50)), ConfigError, "no network"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(what: Manifest, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        first_config(what, "data/x", False)


@pytest.mark.parametrize(
    ("url", "name"), [("data/photos/", "photos"), ("s3://b/My Set!", "My-Set"), ("/", "first"), ("a/..", "first")]
)
def test_the_run_is_named_after_its_data(url: str, name: str) -> None:
    assert name_for(url) == name


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "my photos"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(noise.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_a_folder_of_pictures_gets_the_command_that_packs_it(photos: Path) -> None:
    said = pack_offer(Storage.at(photos), str(photos))
    assert said is not None
    command = re.search(r"`(ebmscale pack [^`]*)`", said)
    assert command is not None
    assert shlex.split(command[1])[1:4] == ["pack", "folder", str(photos)]
    assert shlex.split(command[1])[-2:] == ["--size", "64"]
    done = call(*shlex.split(command[1])[1:4], str(photos.parent / "packed"), "--size", "64")
    assert done.exception is None or "broken" in str(done.exception)


def test_other_places_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "x.npy", np.zeros(3))
    (tmp_path / "empty").mkdir()
    offers = {name: pack_offer(Storage.at(tmp_path / name), name) for name in ("arrays", "empty", "missing")}
    assert "`ebmscale pack npy arrays data/arrays`" in str(offers["arrays"])
    assert "holds no packed set and no pictures" in str(offers["empty"])
    assert "does not exist" in str(offers["missing"])
    failed = call("init", str(tmp_path / "empty"))
    assert isinstance(failed.exception, DataError)


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def test_init_writes_a_file_that_trains(digits_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = call("init", digits_url, "--minutes", "0.01", "--device", "cpu")
    assert first.exception is None, first.output
    assert [path.name for path in tmp_path.iterdir()] == ["digits.yaml"]
    text = (tmp_path / "digits.yaml").read_text()
    assert re.match(r"# 1,797 images of 1x8x8\. It takes at most \d+ (s|min) on \d+ CPU core", text)
    assert re.search(r"at most \d+ (s|min) on this machine:\n +ebmscale train digits.yaml", first.output)
    dry = call("train", "digits.yaml", "--dry-run", "prior.num_particles=512", "stages.evidence_samples=64")
    assert dry.exception is None, dry.output
    assert "every part works" in dry.output
    again = call("init", digits_url)
    assert isinstance(again.exception, ConfigError)
    assert "already exists" in str(again.exception)
    assert (tmp_path / "digits.yaml").read_text() == text
