"""A run with relative addresses is evaluated from another folder, or the message says which option to give."""

import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from ebmscale.address import Address
from ebmscale.cli import cli
from ebmscale.config import RunConfig, parse_config
from ebmscale.errors import ConfigError, DataError
from ebmscale.search.driver import with_absolute_features
from ebmscale.search.space import EvaluateBlock, Space
from ebmscale.stop import StopSignal
from ebmscale.training.loop import train
from ebmscale.training.view import View
from ebmscale.world import World


def test_a_run_finds_its_data_from_any_folder(
    tiny_text: str, digits_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("there", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    relative = os.path.relpath(digits_url)
    changes = [f"data.url={relative}", "storage.url=runs", "train.max_samples=320", "stages.max_stages=1"]
    run = Path(train(parse_config(tiny_text, changes), View(quiet=True), World.alone(), StopSignal()))
    assert run == tmp_path / "there" / "runs" / "tiny"
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = ["evaluate", str(run), "--split", "validation", "--num-samples", "20"]
    CliRunner().invoke(cli, words, catch_exceptions=False)
    assert list((run / "evaluation").iterdir())

    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["data"]["url"] == digits_url
    saved["data"]["url"] = "data/digits"  # as earlier versions saved runs
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(DataError, match=r"trained on data/digits, an address relative .*with --data"):
        CliRunner().invoke(cli, words, catch_exceptions=False)
    CliRunner().invoke(cli, [*words, "--data", digits_url], catch_exceptions=False)
    CliRunner().invoke(cli, ["report", str(run)], catch_exceptions=False)
    assert "an address relative to the folder where the training ran" in (run / "report.html").read_text()

    saved["data"]["url"] = str(tmp_path / "gone")
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(DataError, match=r"there is no set any more; give its address with --data"):
        CliRunner().invoke(cli, words, catch_exceptions=False)


def test_every_address_of_a_configuration_is_made_whole(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    data = {"url": Address("s3://bucket/digits"), "source": Address("photos"), "cache": "~/cache"}
    config = tiny.model_copy(
        update={
            "data": tiny.data.model_copy(update=data),
            "storage": tiny.storage.model_copy(update={"url": Address("../runs")}),
        }
    )
    found = config.with_absolute_addresses()
    assert found.data.url == "s3://bucket/digits"
    assert found.data.source == f"{Path.cwd()}/photos"
    assert found.data.cache == "/home/someone/cache"
    assert found.storage.url == f"{Path.cwd().parent}/runs"
    assert found.with_absolute_addresses() == found
    assert [Address(one).is_relative for one in ("a/b", "/a", "~/a", "s3://a")] == [True, False, False, False]
    assert Address("memory://x").absolute() == "memory://x"


def test_a_search_finds_its_features_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = Space.model_construct(evaluate=EvaluateBlock(features=Address("features/digits")))
    (tmp_path / "features" / "digits").mkdir(parents=True)
    with pytest.raises(ConfigError, match="a relative address starts at the folder where the command runs"):
        with_absolute_features(space)
    monkeypatch.chdir(tmp_path)
    assert with_absolute_features(space).evaluate.features == str(tmp_path / "features" / "digits")
