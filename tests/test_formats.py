"""What people have opens still: a set, a run, an export, a search and a comparison as they were written before.

`fixtures/format_2` was written by the commands that `fixtures/README.md` names.
"""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import ebmscale
from ebmscale.cli import cli
from ebmscale.search.trial import SearchStore
from ebmscale.storage import Storage

FIXTURE = Path(__file__).parent / "fixtures" / "format_2"
PLACE = "FOLDER"  # stands for the folder in the files that name it


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixture, which is also the working directory."""
    copy = tmp_path / "copy"
    shutil.copytree(FIXTURE, copy)
    for file in (*copy.rglob("*.yaml"), *copy.rglob("*.json")):
        file.write_text(file.read_text().replace(PLACE, str(copy)))
    monkeypatch.chdir(copy)
    return copy


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_a_run_and_its_export_are_the_same_model(folder: Path) -> None:
    of_run, of_export = ebmscale.load("run"), ebmscale.load("export")
    assert of_run.prior.num_stages == of_export.prior.num_stages == 2
    assert of_run.samples_seen == of_export.samples_seen == 2400
    z = torch.linspace(-2, 2, 20).view(5, 4)
    assert torch.equal(of_run.log_prior(z), of_export.log_prior(z))
    assert torch.equal(of_run.decode(z), of_export.decode(z))


def test_a_run_is_inspected_and_resumed(folder: Path) -> None:
    assert run("inspect", "run").output.count("ok") == 2
    run("inspect", "shards")
    run("train", "t.yaml", "train.max_samples=2720")
    assert ebmscale.load("run").samples_seen == 2720


def test_the_records_of_a_search_are_read(folder: Path) -> None:
    store = SearchStore(Storage.at("search"))
    config, space = store.load()
    assert (config.run.name, space.num_trials) == ("search", 2)
    records = store.records()
    assert [record.status for record in records.values()] == ["finished", "finished"]
    assert all(record.samples_seen == 640 for record in records.values())


def test_a_comparison_keeps_its_results(folder: Path) -> None:
    (folder / "comparison").rename(folder / "compare-few")
    before = (folder / "compare-few" / "comparison.md").read_text()
    result = run("compare", "compare.yaml", "--seeds", "1", "storage.url=.")
    assert "training" not in result.output
    assert (folder / "compare-few" / "comparison.md").read_text().splitlines()[-2:] == before.splitlines()[-2:]
