"""Interruption and resume: bit for bit what no interruption gives."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import ebmscale
from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError, Interrupted
from ebmscale.model.checkpoint import position_of
from ebmscale.model.run_folder import run_storage
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.loop import train
from ebmscale.training.metrics import EVENTS_FILE, METRICS_FILE, read_lines
from ebmscale.training.update import train_batch
from ebmscale.training.view import View
from ebmscale.world import World


def changed(config: RunConfig, **blocks: dict[str, Any]) -> RunConfig:
    tree = config.model_dump(mode="json")
    for block, values in blocks.items():
        tree[block] |= values
    return RunConfig.model_validate(tree)


def run_until(config: RunConfig, stop_after: int | None = None) -> None:
    """Trains; asked to stop after the batch that reaches `stop_after` samples."""
    stop = StopSignal()
    if stop_after is None:
        train(config, View(quiet=True), World.alone(), stop)
        return

    def watched(run, batch):
        report = train_batch(run, batch)
        if batch.end >= stop_after:
            stop.request("SIGTERM")
        return report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ebmscale.training.loop.train_batch", watched)
        with pytest.raises(Interrupted, match="run the same command to continue"):
            train(config, View(quiet=True), World.alone(), stop)


def history(config: RunConfig, name: str) -> list[dict[str, Any]]:
    lines = read_lines(run_storage(config), name)
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


def final_files(config: RunConfig) -> dict[str, Any]:
    storage = run_storage(config)
    store = CheckpointStore(storage)
    manifest = store.open(store.finished()[0]).manifest
    files = {name: known.sha256 for name, known in manifest.files.items() if name != "clock.json"}
    return files | {key: getattr(manifest, key) for key in ("samples_seen", "ratios", "stage", "metrics")}


def positions(config: RunConfig) -> list[int]:
    return [position_of(name) for name in reversed(CheckpointStore(run_storage(config)).finished())]


POSTERIORS = {
    "base": {},
    "encoder": {"start": "encoder"},
}


@pytest.mark.parametrize(
    ("kind", "posterior"),
    [
        ("persistent", "base"),
        ("short_run", "encoder"),
        pytest.param("persistent", "encoder", marks=pytest.mark.slow),
        pytest.param("short_run", "base", marks=pytest.mark.slow),
    ],
)
def test_two_interruptions_change_nothing(tiny: RunConfig, posterior: str, kind: str) -> None:
    straight = changed(tiny, run={"name": "straight"}, posterior=POSTERIORS[posterior], prior={"kind": kind})
    broken = changed(straight, run={"name": "broken"})
    run_until(straight)
    run_until(broken, stop_after=1472)  # in the second epoch of 1,437 images
    run_until(broken, stop_after=1504)  # straight after loading
    run_until(broken)
    assert final_files(broken) == final_files(straight)
    assert history(broken, METRICS_FILE) == history(straight, METRICS_FILE)
    assert history(broken, EVENTS_FILE) == history(straight, EVENTS_FILE)
    decisions = [event.get("decision") for event in history(straight, EVENTS_FILE)]
    assert "Advance" in decisions  # the interruptions fall among stages, not before them


def test_what_was_written_after_the_last_checkpoint_is_not_doubled(tiny: RunConfig, undisturbed: RunConfig) -> None:
    """A crash, not a stop: no checkpoint at the end, logs beyond the last one."""
    crashed = changed(tiny, run={"name": "crashed"})

    def explode(run, batch):
        if batch.end > 2400:
            raise MemoryError
        return train_batch(run, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ebmscale.training.loop.train_batch", explode)
        with pytest.raises(MemoryError):
            train(crashed, View(quiet=True), World.alone(), StopSignal())
    assert history(crashed, METRICS_FILE)[-1]["samples_seen"] > positions(crashed)[-1]
    run_until(crashed)
    assert history(crashed, METRICS_FILE) == history(undisturbed, METRICS_FILE)
    assert final_files(crashed) == final_files(undisturbed)


def test_a_longer_budget_goes_on_from_the_end(tiny: RunConfig) -> None:
    short = changed(tiny, train={"max_samples": 1600})
    run_until(short)
    run_until(changed(short, train={"max_samples": 1920}))
    assert positions(short)[-1] == 1920


def test_a_finished_run_is_left_alone(undisturbed: RunConfig) -> None:
    before = final_files(undisturbed)
    run_until(undisturbed)
    assert final_files(undisturbed) == before


def test_another_model_in_the_same_run_is_refused(tiny: RunConfig) -> None:
    run_until(changed(tiny, train={"max_samples": 320}))
    with pytest.raises(ConfigError, match=r"model\.latent_dim.*choose another run\.name"):
        run_until(changed(tiny, model={"latent_dim": 5}))


def test_a_model_that_only_the_checkpoint_knows_is_refused_too(tiny: RunConfig) -> None:
    """`config.yaml` was edited, or is lost: no shape of a tensor says that sigma is another."""
    short = changed(tiny, train={"max_samples": 320})
    run_until(short)
    file = Path(run_storage(tiny).local_path("config.yaml"))
    file.write_text(changed(short, model={"sigma": 0.123}).dump())
    with pytest.raises(ConfigError, match=r"was made with other values of model\.sigma than the configuration"):
        ebmscale.load(run_storage(tiny).url)
    file.unlink()
    with pytest.raises(ConfigError, match=r"was made with other values of model\.sigma than the configuration"):
        run_until(changed(tiny, model={"sigma": 0.123}))
    run_until(short)
    ebmscale.load(run_storage(tiny).url)


def test_a_run_that_never_saved_may_change(tiny: RunConfig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ebmscale.training.loop.train_batch", lambda run, batch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_until(tiny)
    assert run_storage(tiny).exists("config.yaml")
    run_until(changed(tiny, model={"latent_dim": 5}, train={"max_samples": 320}))


def test_a_different_seed_gives_a_different_run_and_the_same_seed_the_same(tiny: RunConfig) -> None:
    short = changed(tiny, train={"max_samples": 640})
    runs = [changed(short, run={"name": name, "seed": seed}) for name, seed in [("a", 1), ("b", 1), ("c", 2)]]
    for config in runs:
        run_until(config)
    a, b, c = (history(config, METRICS_FILE) for config in runs)
    assert a == b
    assert a != c


def test_old_checkpoints_go_and_the_last_two_stay(tiny: RunConfig) -> None:
    config = changed(tiny, checkpoint={"every_samples": 320, "keep_last": 2, "keep_every": 1600})

    def awaiting(run, batch):
        """Lets every checkpoint be written at once: one that falls due while another is written is put off."""
        run.saver.finish()
        return train_batch(run, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ebmscale.training.loop.train_batch", awaiting)
        run_until(config)
    assert positions(config) == [1600, 2880, 3200]


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tiny: RunConfig, undisturbed: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = changed(tiny, run={"name": undisturbed.run.name})
    storage = run_storage(damaged)
    shutil.copytree(run_storage(undisturbed).url, storage.url)
    newest = CheckpointStore(storage).finished()[0]
    flip_bit(storage, f"checkpoints/{newest}/generator-0000-000.safetensors")
    run_until(damaged)
    assert f"skipping checkpoint {newest}" in caplog.text
    assert "generator-0000-000.safetensors is damaged" in caplog.text
    assert final_files(damaged) == final_files(undisturbed)  # trained again from the one before, to the same bits


@pytest.mark.parametrize(("old", "new"), [(b'"files"', b'"fimes"'), (b'"stage": ', b'"stage": 1'), (b"{", b"[")])
def test_a_damaged_manifest_is_passed_over(tiny: RunConfig, old: bytes, new: bytes) -> None:
    config = changed(tiny, train={"max_samples": 640}, checkpoint={"every_samples": 320})
    run_until(config)
    storage = run_storage(config)
    store = CheckpointStore(storage)
    path = storage.local_path(f"checkpoints/{store.finished()[0]}/manifest.json")
    assert isinstance(path, Path)
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    problem = str(store.describe()[-1].problem)
    assert "manifest.json is damaged" in problem or "manifest.json is not valid JSON" in problem
    assert store.newest(lambda saved: saved.samples_seen) == 320


def flip_bit(storage: Storage, path: str) -> None:
    local = storage.local_path(path)
    assert isinstance(local, Path)
    data = bytearray(local.read_bytes())
    data[len(data) // 2] ^= 1
    local.write_bytes(bytes(data))


def test_the_python_functions_train_load_and_train_again(tiny: RunConfig) -> None:
    """`ebmscale.train` stays a function after its package's modules were imported."""
    url = ebmscale.train(changed(tiny, train={"max_samples": 320}))
    assert ebmscale.load(url).samples_seen == 320
    assert ebmscale.train(changed(tiny, train={"max_samples": 640})) == url
    assert ebmscale.load(url).samples_seen == 640
