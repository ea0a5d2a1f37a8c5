"""`ebmscale pack` with its options."""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ebmscale.cli import cli
from ebmscale.data.manifest import Manifest
from ebmscale.errors import ConfigError, DataError
from ebmscale.storage import Storage


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for number in range(10):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 12, 3), number, np.uint8)).save(path)
    (folder / "readme.txt").write_text("")
    return folder


def run(*arguments):
    return CliRunner().invoke(cli, ["pack", *map(str, arguments)])


def test_a_folder_with_options(images, tmp_path):
    url = tmp_path / "shards"
    options = ["--size", 8, "--grey", "--encoding", "png", "--shard-samples", 4, "--threads", 2]
    result = run("folder", images, url, *options)
    assert result.exit_code == 0, result.output
    assert result.output == f"{url}: images, 10 train, 2 class(es), 3 shard(s), png; 1 other files skipped\n"
    again = run("folder", images, url, *options)
    assert (again.exit_code, again.output.count("already packed, its source has not changed")) == (0, 1)
    manifest = Manifest.load(Storage.at(url))
    assert (manifest.image_shape, manifest.encoding, manifest.classes) == ((1, 8, 8), "png", ["a", "b"])


def test_options_that_a_format_does_not_take(tmp_path):
    result = run("digits", "-", tmp_path / "shards", "--grey")
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "shards").exists()


def test_digits_are_not_taken_for_the_files_of_a_user(tmp_path):
    result = run("digits", tmp_path, tmp_path / "shards")
    assert isinstance(result.exception, DataError)
    assert f"digits comes with scikit-learn and is not read from {tmp_path}; write - there" in str(result.exception)


def test_a_size_without_a_network_is_said(images, tmp_path):
    result = run("folder", images, tmp_path / "shards", "--size", 7)
    assert result.exit_code == 0
    assert "note: this set cannot be trained on with the built-in networks." in result.output
    assert "7x7 pixels" in result.output


def test_a_broken_picture_is_left_out_and_counted(images, tmp_path):
    (images / "a" / "broken.png").write_bytes(b"no picture")
    url = tmp_path / "shards"
    refused = run("folder", images, url, "--size", 8)
    assert isinstance(refused.exception, DataError)
    assert "1 of the 11 samples of images cannot be used" in str(refused.exception)
    result = run("folder", images, url, "--size", 8, "--max-damaged", 0.1)
    assert result.exit_code == 0, result.output
    note = f"1 damaged or unfitting sample(s) left out, listed in {url}"
    assert f"10 train, 2 class(es), 1 shard(s), raw; 1 other files skipped; {note}" in result.output


def test_a_share_of_the_samples_becomes_the_test_part(images, tmp_path):
    url = tmp_path / "shards"
    assert run("folder", images, url, "--size", 8, "--test-fraction", 0.4).exit_code == 0
    counts = Manifest.load(Storage.at(url)).counts()
    assert sum(counts.values()) == 10
    assert 0 < counts["test"] < 10
    assert run("folder", images, url, "--size", 8, "--test-fraction", 2).exit_code == 2
