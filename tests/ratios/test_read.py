"""Samples from files and shards, and the command on them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

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


def test_of_posteriors_one_latent_each_is_drawn(tmp_path: Path) -> None:
    mean, std = normal(3000, 3).numpy(), np.full((3000, 3), 0.5, np.float32)
    drawn = []
    for name, means in (("a", mean), ("b", -mean)):
        np.savez(tmp_path / f"{name}.npz", mean=means, std=std)
        pack(open_source("npy", str(tmp_path / f"{name}.npz")), Storage.at(tmp_path / name))
        drawn.append(read_samples(str(tmp_path / name), "q").numpy())
        assert np.array_equal(drawn[-1], read_samples(str(tmp_path / name), "q").numpy())
    assert drawn[0].shape[1:] == (3,)
    assert np.allclose(drawn[0].std(0), math.sqrt(1.25), atol=0.05)
    assert np.allclose((drawn[0] + drawn[1]).std(0), math.sqrt(0.5), atol=0.05)  # their noise is independent


def test_what_holds_no_samples_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(b"no array")
    np.savez(tmp_path / "two.npz", one=np.ones(30), other=np.ones(30))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    with (tmp_path / "appended.npy").open("wb") as file:
        for _ in range(2):
            np.save(file, np.ones((30, 2)))
    for name, words in (
        ("appended.npy", "608 bytes after its array"), ("bad.npy", "cannot be read"),
        ("two.npz", "name the array of samples"), ("objects.npy", "cannot be read"), ("nothing", "nor a set of shards"),
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


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["ratio", *words, "--hidden", "", "--seed", "1"])


def test_the_command_tests_whether_two_sets_differ(tmp_path: Path) -> None:
    for name, values in (("p", normal(400, 1)), ("same", normal(400, 1, seed=3)), ("q", narrow(400, 1))):
        np.save(tmp_path / f"{name}.npy", values.numpy())
    p, same, q = (str(tmp_path / f"{name}.npy") for name in ("p", "same", "q"))
    for other, words in ((q, "p and q differ"), (same, "do not show a difference")):
        done = run(p, other, "--test")
        assert done.exit_code == 0, done.output
        assert "p-value" in done.output
        assert words in done.output


def test_the_command_scores_rows_beside_their_file(tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", normal(600, 2).numpy())
    np.save(tmp_path / "new.npy", np.array([[0.0, 0.0], [0.5, -0.5], [6.0, 6.0]]))
    done = run("-", str(tmp_path / "q.npy"), "--score", str(tmp_path / "new.npy"))
    assert done.exit_code == 0, done.output
    assert "1 of 3 rows" in done.output
    found = np.load(tmp_path / "new.scores.npz")
    assert found["score"].argmax() == found["p_value"].argmin() == 2
    assert found["score"][0] == pytest.approx(math.log(2 * math.pi), abs=0.2)
    assert json.loads((tmp_path / "new.scores.json").read_text())["held_out"] == 60


@pytest.mark.parametrize("rows", [np.zeros((0, 2)), np.zeros((5, 3)), np.full((5, 2), np.nan)])
def test_rows_that_cannot_be_scored_are_refused_before_the_fit(tmp_path: Path, rows: np.ndarray) -> None:
    np.save(tmp_path / "q.npy", normal(600, 2).numpy())
    np.save(tmp_path / "new.npy", rows)
    refused = run("-", str(tmp_path / "q.npy"), "--score", str(tmp_path / "new.npy"))
    assert isinstance(refused.exception, DataError)
    assert "stage" not in refused.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("p.npy q.npy --test --score new.npy", "give one of them"),
        ("p.npy q.npy --test --base samples", "has no meaning with --test"),
        ("p.npy q.npy --test --out x.npz", "leave out --out"),
        ("p.npy q.npy --score new.npy", "write - in place of p.npy"),
        ("- q.npy --score https://host.invalid/new.npy", "with --out"),
    ],
)
def test_options_that_exclude_each_other_are_refused(words: str, said: str) -> None:
    refused = run(*words.split())
    assert isinstance(refused.exception, ConfigError)
    assert said in str(refused.exception)


@pytest.mark.parametrize("hidden", ["1_0", "8,,8", "8,", "8.0", "1e2", "a"])
def test_widths_are_plain_numbers(tmp_path: Path, hidden: str) -> None:
    failed = CliRunner().invoke(cli, ["ratio", "-", str(tmp_path / "q.npy"), "--base", "normal", "--hidden", hidden])
    assert isinstance(failed.exception, ConfigError)
    assert "must be numbers with commas" in str(failed.exception)
