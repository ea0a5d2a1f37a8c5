"""Checkpoints and exports that anyone may have written: a result or one sentence, and never weights that are none."""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from ebmscale.config import parse_config
from ebmscale.density.prior import POWER, RatioSequence, StandardNormal
from ebmscale.errors import DamagedError, DivergenceError, StorageError
from ebmscale.model.build import build_model, build_ratio_network
from ebmscale.model.checkpoint import FOLDER
from ebmscale.model.export import ABOUT_FILE, TENSOR_FILE
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.load import from_checkpoint, open_model
from ebmscale.model.normaliser import measure_normaliser
from ebmscale.model.pieces import PartImage, piece
from ebmscale.model.run_documents import RunState
from ebmscale.storage import Storage
from ebmscale.stored import as_form, digest
from ebmscale.training.checkpoint import CheckpointStore, name_of
from tests.conftest import TINY
from tests.foreign import FEW, damaged, documents, result_or_error

CONFIG = parse_config(TINY.replace("DATA", "nowhere"))
SHAPE = (1, 8, 8)
STATE: dict[str, Any] = {
    "samples_seen": 10,
    "done_at": {"evidence": 0, "metrics": 0, "checkpoint": 10},
    "world_size": 1,
    "image_shape": list(SHAPE),
    "stages": {"stage": {"stage": 1, "started": 0, "best_loss": float("inf")}, "grad_norm": 0.0, "fits_base": False},
    "guard": {"error": 0.5, "num_good": 3, "ratio_round": [1, 0]},
    "measured": {"held_out_mse": 0.4},
    "residuals": None,
    "form": "plain",
    "posterior_steps": 3,
    "meters": [{"train/mse": [0.5, 2.0]}],
}
CLOCK = {"parts": {"data": 0.5}, "total": 1.0, "cpu": 1.0}


def write(
    storage: Storage,
    change: Callable[[dict[str, torch.Tensor]], None] = lambda weights: None,
    ratios: Sequence[dict[str, torch.Tensor]] | None = None,
) -> str:
    """A checkpoint of the tiny run, as the saver writes it, with weights that are changed before."""
    store, name = CheckpointStore(storage), name_of(10, "0123456789ab")
    weights = dict(build_model(CONFIG, SHAPE).state_dict())
    change(weights)
    pieces = [piece(f"weights/{key}", value) for key, value in weights.items()]
    image = PartImage(pieces)
    image.fill(pieces)
    file = "generator-0000-000.safetensors"
    manifest = {
        "samples_seen": 10,
        "stage": 1,
        "good": True,
        "metrics": {},
        "files": {file: store.write_part(name, file, image)},
        "ratios": store.write_ratios(ratios or [build_ratio_network(CONFIG).state_dict()]),
        "tensors": {"generator": {f"weights/{key}": list(value.shape) for key, value in weights.items()}},
    }
    store.commit(name, manifest, {"state": STATE, "clock": CLOCK})
    return name


def read(storage: Storage) -> list[LatentModel]:
    """Everything that is read of a run's checkpoints."""
    found = []
    for name in CheckpointStore(storage).finished():
        saved = CheckpointStore(storage).open(name)
        saved.verify()
        saved.clock()
        found.append(from_checkpoint(CONFIG, saved))
    return found


def rewrite(storage: Storage, name: str, file: str, data: bytes) -> None:
    """Another content for a file, with the checksums made right."""
    path = f"{FOLDER}/{name}/manifest.json"
    manifest = json.loads(storage.read_bytes(path))
    del manifest["sha256"]
    manifest["files"][file] |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    storage.publish(f"{FOLDER}/{name}/{file}", data)
    storage.publish(path, json.dumps(manifest | {"sha256": digest(manifest)}).encode())


@pytest.fixture
def run(tmp_path: Path) -> tuple[Storage, str]:
    storage = Storage.at(tmp_path)
    return storage, write(storage)


def test_a_sound_checkpoint_is_read(run: tuple[Storage, str]) -> None:
    (model,) = read(run[0])
    assert model.samples_seen == 10
    assert model.prior.num_stages == 1


def test_powers_of_the_prior_are_kept_in_checkpoints_and_exports(tmp_path: Path) -> None:
    """A ratio of an earlier version has no power; it counts once."""
    ratio = {name: torch.full_like(one, 0.3) for name, one in build_ratio_network(CONFIG).state_dict().items()}
    write(Storage.at(tmp_path / "run"), ratios=[ratio, {**ratio, POWER: torch.tensor(1.25).double()}])
    (model,) = read(Storage.at(tmp_path / "run"))
    assert model.prior.powers is not None
    assert model.prior.powers.tolist() == [1.0, 1.25]
    model.export(Storage.at(tmp_path / "export"))
    z = torch.randn(5, CONFIG.model.latent_dim)
    f = model.at_stage(1).prior.log_ratios(z)[0]
    expected = 1.25 * (model.prior.base.log_density(z) + f) + f
    for one in (model, open_model(Storage.at(tmp_path / "export"))):
        torch.testing.assert_close(one.log_prior(z), expected)
    write(Storage.at(tmp_path / "odd"), ratios=[{**ratio, POWER: torch.ones(2)}])
    with pytest.raises(DamagedError, match="such as 'power'"):
        read(Storage.at(tmp_path / "odd"))


@pytest.mark.parametrize("power", [0.0, -3.0])
def test_a_power_that_makes_no_density_is_refused(tmp_path: Path, power: float) -> None:
    ratio = build_ratio_network(CONFIG).state_dict()
    write(Storage.at(tmp_path), ratios=[{**ratio, POWER: torch.tensor(power).double()}])
    with pytest.raises(DamagedError, match="not above 0"):
        read(Storage.at(tmp_path))


def test_a_prior_that_particles_cannot_follow_is_told_in_a_sentence() -> None:
    ratio = build_ratio_network(CONFIG)
    prior = RatioSequence(StandardNormal(CONFIG.model.latent_dim), ratio).append(ratio.state_dict(), 1e300)
    with pytest.raises(DivergenceError, match="Particles cannot follow the stages of the prior"):
        measure_normaliser(prior, num_groups=2, group_size=64)


@FEW
@given(data=st.data())
def test_any_manifest_of_a_checkpoint_is_read_or_refused(run: tuple[Storage, str], data: st.DataObject) -> None:
    storage, name = run
    path = f"{FOLDER}/{name}/manifest.json"
    sound = storage.read_bytes(path)
    manifest = json.loads(sound)
    del manifest["sha256"]
    changed = data.draw(documents(manifest))
    storage.publish(path, json.dumps(changed | {"sha256": digest(changed)}).encode())
    result_or_error(lambda: read(storage))
    storage.publish(path, sound)


@FEW
@given(state=documents(STATE))
def test_any_state_is_taken_or_refused(state: dict[str, Any]) -> None:
    result_or_error(lambda: as_form(state, RunState, "state.json"))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(samples_seen="x"),
        lambda state: state.update(samples_seen=11),
        lambda state: state.update(image_shape=[1, 8]),
        lambda state: state.update(form="other"),
        lambda state: state["stages"]["stage"].update(started=-1),
        lambda state: state["guard"].update(ratio_round=[1]),
        lambda state: state["done_at"].pop("metrics"),
    ],
)
def test_a_state_of_another_form_is_refused(run: tuple[Storage, str], change: Callable[[Any], Any]) -> None:
    storage, name = run
    state = copy.deepcopy(STATE)
    change(state)
    rewrite(storage, name, "state.json", json.dumps(state).encode())
    with pytest.raises(DamagedError, match=r"state\.json"):
        read(storage)


@FEW
@given(data=st.data())
def test_any_part_is_read_or_refused(run: tuple[Storage, str], data: st.DataObject) -> None:
    storage, name = run
    file = "generator-0000-000.safetensors"
    sound = storage.read_bytes(f"{FOLDER}/{name}/{file}")
    rewrite(storage, name, file, data.draw(damaged(sound)))
    result_or_error(lambda: read(storage))
    rewrite(storage, name, file, sound)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    write(Storage.at(tmp_path), lambda weights: next(iter(weights.values())).view(-1)[:1].fill_(value))
    with pytest.raises(DamagedError, match="not finite"):
        read(Storage.at(tmp_path))


def test_tensors_of_other_settings_are_refused(tmp_path: Path) -> None:
    def widen(weights: dict[str, torch.Tensor]) -> None:
        name = next(iter(weights))
        weights[name] = torch.zeros(3, 3)

    write(Storage.at(tmp_path), widen)
    with pytest.raises(DamagedError, match="do not fit the configuration: 1 are missing or of another shape"):
        read(Storage.at(tmp_path))


@pytest.fixture
def exported(tmp_path: Path) -> Storage:
    ratio = build_ratio_network(CONFIG)
    prior = RatioSequence(StandardNormal(CONFIG.model.latent_dim), ratio).append(ratio.state_dict())
    storage = Storage.at(tmp_path / "export")
    LatentModel(CONFIG, build_model(CONFIG, SHAPE), prior, SHAPE, 7).export(storage)
    return storage


def rewrite_about(storage: Storage, change: Callable[[dict[str, Any]], Any], checksum: bool = True) -> None:
    about = json.loads(storage.read_bytes(ABOUT_FILE))
    del about["sha256"]
    change(about)
    storage.publish(ABOUT_FILE, json.dumps(about | ({"sha256": digest(about)} if checksum else {})).encode())


def test_an_export_without_checksums_loads_still(exported: Storage) -> None:
    rewrite_about(exported, lambda about: about.pop("files"), checksum=False)
    assert open_model(exported).samples_seen == 7


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.update(format_version=99), "format version 99"),
        (lambda about: about.update(samples_seen="abc"), "samples_seen"),
        (lambda about: about["config"]["model"].update(latent_dim=9), "do not fit the configuration"),
        (lambda about: about["config"]["model"].update(latent_dim=10**12), "do not fit the configuration"),
        (lambda about: about["config"].update(other=1), "other"),
        (lambda about: about.update(image_shape=[1, 9, 7]), "no network for images"),
        (lambda about: about.update(num_stages=2), "another number of stages"),
    ],
)
def test_an_export_of_another_form_is_refused(exported: Storage, change: Callable[[Any], Any], words: str) -> None:
    rewrite_about(exported, change)
    with pytest.raises(StorageError) as caught:
        open_model(exported)
    assert words in str(caught.value)


@pytest.mark.parametrize("file", [TENSOR_FILE, ABOUT_FILE])
def test_a_flipped_bit_in_an_export_is_seen(exported: Storage, file: str) -> None:
    data = exported.read_bytes(file)
    data = data.replace(b'"samples_seen": 7', b'"samples_seen": 6') if file == ABOUT_FILE else data[:-1] + b"\x01"
    exported.publish(file, data)
    with pytest.raises(DamagedError, match="checksum"):
        open_model(exported)


def test_an_export_of_weights_that_are_not_finite_is_refused(exported: Storage) -> None:
    tensors = load(exported.read_bytes(TENSOR_FILE))
    tensors[next(iter(tensors))].view(-1)[0] = float("nan")
    exported.publish(TENSOR_FILE, save(tensors))
    rewrite_about(exported, lambda about: about.pop("files"), checksum=False)
    with pytest.raises(DamagedError, match="not finite"):
        open_model(exported)


@FEW
@given(data=st.data())
def test_any_export_is_loaded_or_refused(exported: Storage, data: st.DataObject) -> None:
    sound, weights = exported.read_bytes(ABOUT_FILE), exported.read_bytes(TENSOR_FILE)
    about = json.loads(sound)
    del about["sha256"], about["files"]
    if data.draw(st.booleans()):
        exported.publish(ABOUT_FILE, json.dumps(data.draw(documents(about))).encode())
    else:
        exported.publish(ABOUT_FILE, json.dumps(about).encode())
        exported.publish(TENSOR_FILE, data.draw(damaged(weights)))
    result_or_error(lambda: open_model(exported))
    exported.publish(ABOUT_FILE, sound)
    exported.publish(TENSOR_FILE, weights)
