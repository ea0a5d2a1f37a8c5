"""Scores in parts: the rows of one process, whoever did the parts, and a folder that the same command continues."""

import pyarrow.parquet as pq
import pytest

from ebmscale.storage import Storage
from tests.program import run_here


@pytest.fixture
def score(make_model, digits_url, tmp_path):
    make_model().export(Storage.at(tmp_path / "model"))

    def score(name: str, *options: str):
        return run_here("score", tmp_path / "model", digits_url, "--out", tmp_path / name, *options)

    return score


def test_two_workers_write_the_rows_of_one_process(score, tmp_path):
    assert score("alone.csv").returncode == 0
    done = score("shared.csv", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert "1,797 images scored" in done.stdout
    assert (tmp_path / "shared.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert (tmp_path / "shared.html").read_text() == (tmp_path / "alone.html").read_text()
    assert not (tmp_path / "shared.csv.parts").exists()


def test_a_folder_of_parts_is_one_table_which_the_same_command_completes(score, tmp_path):
    assert score("alone.parquet").returncode == 0
    assert score("parts").returncode == 0
    whole, parts = pq.read_table(tmp_path / "alone.parquet"), tmp_path / "parts"
    assert pq.read_table(parts).equals(whole)
    assert (tmp_path / "parts.html").exists()
    files = sorted(parts.glob("part-*.parquet"))
    assert len(files) == 4
    kept = {file: file.stat().st_mtime_ns for file in files if file != files[1]}
    files[1].unlink()
    assert score("parts").returncode == 0
    assert pq.read_table(parts).equals(whole)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    refused = score("parts", "--seed", "5")
    assert refused.returncode == 2
    assert "its seed is 0, now it is 5" in refused.stderr
    assert "give --workers" in score("other", "--ray", "auto").stderr
