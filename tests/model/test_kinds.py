"""Runs, searches, comparisons, exports and sets keep to places of their own, and say so in a sentence."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import ebmscale
from ebmscale.cli import cli
from ebmscale.config import RunConfig, with_values
from ebmscale.errors import ConfigError
from ebmscale.model.kinds import MARKS, kinds_at, refuse_other
from ebmscale.search.trial import SEARCH_FILE, own_place
from ebmscale.storage import Storage

FIXTURE = Path(__file__).parents[1] / "fixtures" / "format_2"


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def place(folder: Path, kind: str) -> Path:
    """A folder that holds something of a kind."""
    (folder / MARKS[kind][0]).parent.mkdir(parents=True, exist_ok=True)
    (folder / MARKS[kind][0]).write_text("{}")
    return folder


@pytest.mark.parametrize("kind", MARKS)
def test_a_folder_is_written_by_its_own_kind_alone(kind: str, tmp_path: Path) -> None:
    storage = Storage.at(place(tmp_path / kind, kind))
    assert kinds_at(storage) == [kind]
    for other in MARKS:
        if other == kind:
            refuse_other(storage, other, "go away")
            continue
        with pytest.raises(ConfigError, match=f"holds an? {kind}, and no {other} is written there; go away"):
            refuse_other(storage, other, "go away")
    refuse_other(Storage.at(tmp_path / "nothing"), kind, "go away")


def test_the_fixtures_are_what_they_are() -> None:
    assert kinds_at(Storage.at(FIXTURE / "run")) == ["run"]
    assert kinds_at(Storage.at(FIXTURE / "shards")) == ["packed set"]


def test_a_search_has_a_folder_of_its_own_and_an_old_one_keeps_its_place(tiny: RunConfig, tmp_path: Path) -> None:
    assert own_place(tiny).run.name == "tune-tiny"
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / SEARCH_FILE).write_text("{}")
    assert own_place(tiny) == tiny


@pytest.mark.parametrize("kind", ["search", "comparison", "export", "packed set"])
def test_training_leaves_what_is_there(kind: str, tiny: RunConfig, tmp_path: Path) -> None:
    folder = place(tmp_path / "runs" / "tiny", kind)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError, match=f"holds an? {kind}, and no run is written there; choose another run.name"):
        ebmscale.train(with_values(tiny, {}, "test"), quiet=True)
    assert [path for path in sorted(folder.rglob("*")) if "owner" not in str(path)] == before


def test_commands_refuse_the_place_of_something_else(tiny_text: str, digits_url: str, tmp_path: Path) -> None:
    run, search = place(tmp_path / "run", "run"), place(tmp_path / "search", "search")
    export = place(tmp_path / "export", "export")
    for words, said in [
        (("pack", "digits", "-", run), "holds a run, and no packed set is written there; give another address"),
        (("export", FIXTURE / "run", digits_url), "holds a packed set, and no export is written there"),
        (("pack", "digits", "-", export), "holds an export, and no packed set is written there"),
        (("features", "train", digits_url, run), "holds a run, and no feature network is written there"),
        (("sample", search, "--out", tmp_path / "x.png"), "There is no run at"),
        (("sample", search, "--out", tmp_path / "x.png"), "It holds a search: its runs are in the folder trials"),
    ]:
        failed = call(*words)
        assert isinstance(failed.exception, ConfigError)
        assert said in str(failed.exception)
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    place(tmp_path / "runs" / "tune-tiny", "run")
    (tmp_path / "space.yaml").write_text(
        "objectives: [{metric: held_out_mse, direction: min}]\nnum_trials: 1\nspace: {run.seed: {choice: [1, 3]}}\n"
    )
    place(tmp_path / "runs" / "compare-tiny", "run")
    failed = call("compare", tmp_path / "tiny.yaml")
    assert "holds a run, and no comparison is written there; give the comparison another name" in str(failed.exception)
    failed = call("tune", tmp_path / "tiny.yaml", "--space", tmp_path / "space.yaml")
    assert "holds a run, and no search is written there; choose another run.name" in str(failed.exception)


def test_training_keeps_a_configuration_that_no_run_wrote(tiny: RunConfig, tiny_text: str, tmp_path: Path) -> None:
    mine = tmp_path / "runs" / "tiny" / "config.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(f"# my notes\n{tiny_text}")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"config\.yaml was not written by a run, and is not overwritten"):
            ebmscale.train(with_values(tiny, {}, "test"), quiet=True)
    assert mine.read_text() == f"# my notes\n{tiny_text}"


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_an_export_keeps_what_another_program_wrote(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for _ in range(2):  # the second one writes over the first
        assert call("export", FIXTURE / "run", folder).exception is None
    (folder / name).write_bytes(b'{"model_type": "other"}')
    failed = call("export", FIXTURE / "run", folder)
    assert isinstance(failed.exception, ConfigError)
    assert f"{name} is not of an export, and is not overwritten" in str(failed.exception)
    assert (folder / name).read_bytes() == b'{"model_type": "other"}'
    (folder / name).write_bytes(b"")
    assert call("export", FIXTURE / "run", folder).exception is None
