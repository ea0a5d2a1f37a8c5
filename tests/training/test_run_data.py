"""A run recognises its data set at any address."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_resume import changed, positions, run_until

from ebmscale.config import RunConfig
from ebmscale.data.formats import open_source
from ebmscale.data.manifest import Manifest
from ebmscale.data.pack import pack
from ebmscale.errors import DataError
from ebmscale.model.run_folder import CONFIG_FILE, run_storage
from ebmscale.storage import Storage
from ebmscale.training.run_data import DATA_FILE, read_run_data


@pytest.fixture
def other(tmp_path: Path) -> str:
    """A set with the same image shape as the digits."""
    images = np.random.default_rng(1).integers(0, 255, (900, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    pack(open_source("npy", str(tmp_path / "images.npy")), Storage.at(tmp_path / "other"))
    return str(tmp_path / "other")


def started(config: RunConfig) -> RunConfig:
    """A run with a checkpoint, and a budget to continue."""
    run_until(changed(config, train={"max_samples": 320}))
    return changed(config, train={"max_samples": 640})


def test_another_set_of_the_same_form_is_refused_and_the_run_left_alone(tiny: RunConfig, other: str) -> None:
    config = started(tiny)
    before = run_storage(config).read_text("config.yaml")
    with pytest.raises(DataError, match=r"made with the data set digits \(1,797 train; .*holds .*900 train.*accept_ch"):
        run_until(changed(config, data={"url": other}))
    assert run_storage(config).read_text("config.yaml") == before
    run_until(config)
    assert positions(config)[-1] == 640


def test_the_same_set_at_another_address_is_the_same(tiny: RunConfig, tmp_path: Path) -> None:
    config = started(tiny)
    shutil.copytree(config.data.url, tmp_path / "moved")
    run_until(changed(config, data={"url": str(tmp_path / "moved")}))
    assert positions(config)[-1] == 640


def test_another_set_is_accepted_where_that_is_asked_for(
    tiny: RunConfig, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = changed(started(tiny), data={"url": other, "accept_changed": True})
    run_until(config)
    assert "it continues with the new one, as data.accept_changed is true" in caplog.text
    run_until(changed(config, data={"accept_changed": False}, train={"max_samples": 960}))  # it is now the run's set
    assert positions(config)[-1] == 960


def test_a_run_whose_configuration_is_gone_says_that_no_change_can_be_seen(
    tiny: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config, storage = started(tiny), run_storage(tiny)
    assert "assumed" not in caplog.text
    storage.delete(CONFIG_FILE)
    run_until(config)
    assert "config.yaml is not there: the configuration is assumed to be unchanged" in caplog.text


@pytest.mark.parametrize("content", [None, b"["])
def test_a_run_of_an_earlier_version_goes_on_and_notes_its_set(tiny: RunConfig, content: bytes | None) -> None:
    config, storage = started(tiny), run_storage(tiny)
    storage.delete(DATA_FILE)
    if content is not None:
        storage.publish(DATA_FILE, content)
    run_until(config)
    noted = read_run_data(storage)
    assert noted is not None
    assert noted.identity == Manifest.load(Storage.at(config.data.url)).identity()


def packed(folder: Path, images: np.ndarray, labels: np.ndarray) -> Manifest:
    folder.mkdir()
    np.savez(folder / "set.npz", images=images, labels=labels)
    return pack(open_source("npy", str(folder / "set.npz")), Storage.at(folder / "set"))


CHANGES: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "a pixel": lambda images, labels: images.__setitem__((3, 0, 1, 1), images[3, 0, 1, 1] ^ 1),
    "a label": lambda images, labels: labels.__setitem__(3, (labels[3] + 1) % 10),
    "the order": lambda images, labels: images.__setitem__(slice(0, 2), images[1::-1].copy()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_identity_tells_sets_apart_and_not_places(tmp_path: Path, change: str) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (40, 1, 4, 4), dtype=np.uint8)
    labels = np.arange(40) % 10
    first, again = (packed(tmp_path / name, images, labels) for name in "ab")
    assert again.identity() == first.identity()
    assert Manifest.from_json(first.to_json(), Storage.at(tmp_path / "a")).identity() == first.identity()
    CHANGES[change](images, labels)
    assert packed(tmp_path / "c", images, labels).identity() != first.identity()
