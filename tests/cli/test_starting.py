"""What a newcomer starts with: the presets by name, and the meaning of every key."""

import errno
import os
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ebmscale.cli import cli
from ebmscale.compare import make_jobs
from ebmscale.config import RunConfig, known_keys, load_config
from ebmscale.config.presets import FOLDER, presets
from ebmscale.config.table import find_keys, key_rows
from ebmscale.errors import ConfigError, EbmscaleError, StorageError
from ebmscale.search.space import load_space
from ebmscale.storage import Storage

BY_KIND = {
    kind: [p.name for p in presets() if p.kind == kind] for kind in ("configuration", "comparison", "search space")
}


def run(line: str) -> Result:
    return CliRunner().invoke(cli, shlex.split(line))


@pytest.mark.parametrize("name", BY_KIND["configuration"])
def test_a_preset_is_the_configuration_in_the_file(name: str) -> None:
    assert load_config(f"preset:{name}", ["run.seed=7"]) == load_config(FOLDER / f"{name}.yaml", ["run.seed=7"])


@pytest.mark.parametrize("name", BY_KIND["comparison"])
def test_a_comparison_finds_its_configuration(name: str) -> None:
    jobs = make_jobs(f"preset:{name}", None, 1, ())
    assert [job.row for job in jobs] == [job.row for job in make_jobs(str(FOLDER / f"{name}.yaml"), None, 1, ())]


@pytest.mark.parametrize("name", BY_KIND["search space"])
def test_a_search_space_is_found_by_name(name: str) -> None:
    assert load_space(f"preset:{name}") == load_space(FOLDER / f"{name}.yaml")


def test_a_configuration_by_name_stands_for_all_methods() -> None:
    assert {job.config.method for job in make_jobs("preset:digits", None, 1, ())} >= {"adaptive", "lebm", "gaussian"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("preset:digit", "did you mean preset:digits"),
        ("preset:qqqqqq", "`ebmscale presets` lists them"),
        ("preset:../pyproject", "there is no preset"),
        ("preset:tune/digits", "is a search space, but a configuration is needed"),
    ],
)
def test_another_name_is_refused_with_the_nearest(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(given)


def test_the_list_has_a_line_for_each_preset_with_what_it_is() -> None:
    lines = run("presets").output.splitlines()
    assert len(lines) == len(presets()) >= 20
    for one, line in zip(presets(), lines, strict=True):
        name, about = line.split(maxsplit=1)
        assert name == f"preset:{one.name}"
        assert about == one.about
        assert len(about) > 20


def test_presets_are_copied_to_be_changed(tmp_path: Path) -> None:
    assert run(f"presets --copy {tmp_path}").exception is None
    assert load_config(tmp_path / "configs" / "digits.yaml") == load_config("preset:digits")
    assert make_jobs(str(tmp_path / "configs" / "compare" / "digits.yaml"), None, 1, ())
    assert (tmp_path / "cluster" / "slurm.sh").exists()
    again = run(f"presets --copy {tmp_path}")
    assert isinstance(again.exception, ConfigError)
    assert "already exists" in str(again.exception)


def test_a_full_disk_leaves_no_half_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(source: Path, target: Path, **options: Any) -> None:
        target.mkdir(parents=True)
        (target / "digits.yaml").write_text("run: {na")
        raise shutil.Error([(str(source), str(target), "[Errno 28] No space left on device")])

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", fill)
        full = run(f"presets --copy {tmp_path}/new")
    assert isinstance(full.exception, StorageError)
    assert str(full.exception).endswith("/new: [Errno 28] No space left on device.")
    assert list((tmp_path / "new").iterdir()) == []
    assert run(f"presets --copy {tmp_path}/new").exception is None


def test_every_key_is_explained() -> None:
    leaves = {
        name for name in known_keys(RunConfig) if not any(k.startswith(f"{name}.") for k in known_keys(RunConfig))
    }
    assert {row.name for row in key_rows()} == leaves
    output = run("keys").output
    for row in key_rows():
        assert row.meaning.endswith((".", "`")), row.name
        assert "any value" not in row.values, row.name
        assert f"{row.name}\n    {row.meaning}\n    {row.values}; " in output


def test_a_key_shows_meaning_values_default_and_unit() -> None:
    assert run("keys stages.min_improvement").output == (
        "stages.min_improvement\n    Smallest fall of the held-out loss that counts as an improvement.\n"
        "    a number at least 0; default 0.001 nats; fixed for a run\n"
    )
    assert "a whole number at least 0, or [a, b]: 2 whole numbers above 0; default 0" in run("keys ray.num_w").output
    assert "langevin, smc or tilt; default langevin" in run("keys prior.equilibrate").output


def test_keys_are_found_by_their_beginning_or_their_last_part() -> None:
    assert {row.name.partition(".")[0] for row in find_keys("train")} == {"train"}
    assert [row.name for row in find_keys("sigma")] == ["model.sigma"]
    with pytest.raises(ConfigError, match=r"did you mean train\.batch_size\?"):
        find_keys("train.bach_size")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("sample none --out x.png", "drawing 64 samples of none"),
        ("report none", "drawing samples of none"),
        ("export none model", "reading the model of none"),
        ("plan none.yaml", "one worker is measured"),
        ("compare none.yaml", "comparing the rows of none.yaml with 3 seed(s) each"),
        ("ratio none.npy none.npy", "fitting the ratio of none.npy to none.npy"),
        ("train preset:digits --dry-run data.url=none data.format=null", "dry run: an update of every kind"),
    ],
)
def test_long_commands_say_at_once_what_they_do(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(line)
    assert result.output.startswith(said)
    assert isinstance(result.exception, EbmscaleError)


def test_a_full_disk_leaves_no_half_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Storage.at(tmp_path / "data").publish("x", b"")
    monkeypatch.setattr("ebmscale.data.manifest.Manifest.load", lambda storage: SimpleNamespace(summary=str))
    monkeypatch.setattr("ebmscale.forecast.pack_offer.pack_offer", lambda storage, url: None)
    monkeypatch.setattr("ebmscale.forecast.first_config.timed_config", lambda *given: ("run: {name: a}", 1.0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        full = run(f"init {tmp_path}/data --out {tmp_path}/x.yaml")
    assert isinstance(full.exception, StorageError)
    assert "No space left on device); free some space there" in str(full.exception)
    assert not (tmp_path / "x.yaml").exists()
    assert run(f"init {tmp_path}/data --out {tmp_path}/x.yaml").exception is None


def test_a_file_that_cannot_be_written_is_refused_before_updates_are_timed(tmp_path: Path) -> None:
    result = run(f"init {tmp_path} --out {tmp_path}/none/x.yaml")
    assert isinstance(result.exception, ConfigError)
    assert "cannot be written" in str(result.exception)
