"""Samples from files and shards, and the command on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.data.formats import open_source
from ebmscale.data.pack import pack
from ebmscale.errors import ConfigError, DataError
from ebmscale.ratios.read import read_samples
from ebmscale.storage import Storage
from tests.ratios.test_fit import narrow, normal


def test_arrays_archives_and_shards_hold_samples(tmp_path: Path, digits_url: str) -> None:
    values = normal(40, 3).numpy()
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "one.npz", anything=values)
    np.savez(tmp_path / "two.npz", z=values, other=values[:3])
    pack(open_source("npy", str(tmp_path / "a.npy")), Storage.at(tmp_path / "shards"))
    for name in ("a.npy", "one.npz", "two.npz"):
        assert np.array_equal(read_samples(str(tmp_path / name), "p").numpy(), values)
    shards = read_samples(str(tmp_path / "shards"), "p").numpy()
    assert shards.shape[1:] == (3,)
    assert {tuple(row) for row in shards.tolist()} <= {tuple(row) for row in values.tolist()}
    images = read_samples(digits_url, "q")
    assert images.shape[1:] == (1, 8, 8)
    assert float(images.min()) == -1
    assert float(images.max()) == 1


def test_what_holds_no_samples_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"no array")
    np.savez(tmp_path / "two.npz", one=np.ones(30), other=np.ones(30))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    for name, words in (
        ("bad.npy", "cannot be read"), ("two.npz", "call the samples"), ("objects.npy", "cannot be read"),
        ("nothing", "no set of shards"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            read_samples(str(tmp_path / name), "p")


def test_the_command_fits_and_writes(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", normal(600, 1).numpy())
    np.save(tmp_path / "q.npy", narrow(600, 1).numpy())
    arguments = ["ratio", str(tmp_path / "p.npy"), str(tmp_path / "q.npy"), "--quadratic", "--hidden", ""]
    done = CliRunner().invoke(cli, [*arguments, "--max-stages", "1", "--out", str(tmp_path / "r.npz")])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "r.json").read_text())
    assert about["kl"] > 0.3
    assert len(about["stages"]) == 1
    assert {"auc", "calibration_error"} <= set(about["calibration"])
    arrays = np.load(tmp_path / "r.npz")
    assert arrays["log_ratio_q"].mean() > arrays["log_ratio_p"].mean()
    for more, words in ((["--out", "r.txt"], "must end in .npz"), (["--hidden", "wide"], "numbers with commas")):
        refused = CliRunner().invoke(cli, [*arguments, *more])
        assert isinstance(refused.exception, ConfigError)
        assert words in str(refused.exception)
