"""What commands are told to write to is checked before they do any work, and shown without secrets."""

import json
import math
import os
import uuid

import click
import numpy as np
import pytest
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.errors import ConfigError, EbmscaleError, Interrupted, StorageError
from ebmscale.storage import Storage
from tests.program import run_here

WRITERS = {
    "ratio": "ratio none.npy none.npy --out OUT/x.npz",
    "sample": "sample none --out OUT/x.png",
    "score": "score none none --out OUT/x.csv",
    "evaluate": "evaluate OUT",
    "report": "report OUT",
    "export": "export none OUT",
    "pack": "pack digits - OUT",
    "index": "index OUT",
    "fetch": "fetch mnist OUT",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line):
    return CliRunner().invoke(cli, line.split())


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("place", ["http://user:PASSW0RD@127.0.0.1:1/x", "s3:/bucket/x", "simplecache::s3://bucket"])
def test_what_cannot_be_written_is_refused_before_any_work(here, command, place):
    result = run(WRITERS[command].replace("OUT", place))
    assert isinstance(result.exception, ConfigError | StorageError)
    said = f"{result.output} {result.exception}"
    assert any(
        words in said for words in ("can only be read", "is not an address", "is a chain", "not on this machine")
    )
    assert "PASSW0RD" not in said
    assert list(here.iterdir()) == []


def test_a_ratio_is_written_at_an_address(here):
    np.save(here / "q.npy", np.random.default_rng(0).normal(size=(64, 2)))
    place = Storage.at(f"memory://{uuid.uuid4().hex}")
    result = run(f"ratio - q.npy --base normal --hidden 4 --max-stages 1 --out {place.url}/[1]?.npz")
    assert result.exception is None
    assert place.list() == ["[1]?.json", "[1]?.npz"]
    assert math.isfinite(json.loads(place.read_text("[1]?.json"))["kl"])
    assert [path.name for path in here.iterdir()] == ["q.npy"]


@pytest.mark.parametrize("out", ["-", ".", "./"])
def test_scores_have_a_name(here, out):
    with pytest.raises(ConfigError, match="--out must name a file, or a new folder"):
        raise run(f"score none none --out {out}").exception


def test_a_folder_and_a_wrong_ending_are_refused(here):
    (here / "x.npz").mkdir()
    for out, words in (("x.npz", "is a folder; name a file"), ("x.txt", "must end in .npz")):
        with pytest.raises(ConfigError, match=words):
            raise run(f"ratio none.npy none.npy --out {out}").exception


def test_inspect_shows_no_secret():
    place = f"memory://user:PASSW0RD@{uuid.uuid4().hex}/x"
    result = run(f"inspect {place}")
    assert isinstance(result.exception, EbmscaleError)
    assert "PASSW0RD" not in f"{result.output} {result.exception}"
    assert run(f"pack digits - {place}").exception is None
    result = run(f"inspect {place}")
    assert "shards memory://***@" in result.output
    assert "PASSW0RD" not in result.output


@pytest.mark.parametrize("out", ["q.npz", "./q.npz", "link.npz"])
def test_a_file_that_is_read_is_not_written_over(here, out):
    np.savez(here / "q.npz", np.zeros((64, 2)))
    (here / "link.npz").symlink_to("q.npz")
    before = (here / "q.npz").read_bytes()
    with pytest.raises(ConfigError, match="is a file that is read"):
        raise run(f"ratio p.npy q.npz --out {out}").exception
    assert (here / "q.npz").read_bytes() == before


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize(
    "line",
    [
        "init none --minutes",
        "plan none --bandwidth-gbit",
        "plan none --latency-us",
        "pack digits - x --max-damaged",
        "pack digits - x --test-fraction",
        "features train x y --epochs",
        "ratio p.npy q.npy --budget-s",
    ],
)
def test_an_option_that_is_no_finite_number_is_refused(here, line, number):
    result = run(f"{line} {number}")
    assert result.exit_code == 2
    assert line.split()[-1] in result.output
    assert list(here.iterdir()) == []


def run_and_raise(monkeypatch, error):
    """What a command does that ends in an exception of its own."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli, "main", fail)
    return run_here("doctor")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes. Error code 12"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
    ],
)
def test_too_little_memory_is_said_in_a_sentence(monkeypatch, error):
    done = run_and_raise(monkeypatch, error)
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.startswith("error: There is not enough memory for an array")
    assert ("of 800 bytes" in done.stderr) == ("800" in str(error))
    assert ("of 2.00 GiB" in done.stderr) == ("GiB" in str(error))


@pytest.mark.parametrize("error", [KeyboardInterrupt("SIGTERM"), click.Abort()])
def test_a_stop_at_any_time_is_said_in_a_sentence(monkeypatch, error):
    done = run_and_raise(monkeypatch, error)
    assert done.returncode == Interrupted.exit_code
    assert done.stderr.startswith("stopped: interrupted by SIG")


def test_a_folder_that_is_gone_is_said_in_a_sentence(here):
    here.rmdir()
    done = run_here("presets")
    assert done.returncode == ConfigError.exit_code
    assert done.stderr.startswith("error: The folder that this command was started in is gone")


LONG = "a" * 300


@pytest.mark.parametrize(
    "line",
    [f"pack npy {LONG} out", f"presets --copy {LONG}", f"init x --out {LONG}.yaml", f"sample x --out {LONG}.png"],
)
def test_a_name_that_the_system_does_not_take_is_said_in_a_sentence(here, line):
    raised = run(line).exception
    assert isinstance(raised, EbmscaleError)
    assert "File name too long" in str(raised)
    assert list(here.iterdir()) == []


def test_another_error_of_the_program_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "main", lambda *_, **__: [].pop())
    with pytest.raises(IndexError):
        run_here("doctor")


@pytest.mark.parametrize("line", ["report OUT", "evaluate OUT", "export none OUT", "sample none --out OUT/x.png"])
def test_a_command_that_fails_leaves_no_folder(here, line):
    result = run(line.replace("OUT", "a/b"))
    assert isinstance(result.exception, EbmscaleError)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("line", ["export none OUT", "pack digits - OUT", "sample none --out OUT/x.png"])
@pytest.mark.parametrize("below", ["", "/b"])
def test_a_file_in_the_place_of_a_folder_is_named(here, line, below):
    (here / "a").write_text("text")
    with pytest.raises(StorageError, match=f"{here}/a is a file where a folder should be"):
        raise run(line.replace("OUT", f"a{below}")).exception
    assert (here / "a").read_text() == "text"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("sample none --out x.png", "x.png"),
        ("score none none --out x.csv", "x.html"),
        ("ratio none.npy none.npy --out x.npz", "x.json"),
        ("ratio - none.npy --score none.npy", "none.scores.json"),
    ],
)
@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "a pipe or a device"), (os.mkdir, "a folder")])
def test_nothing_but_a_file_is_written_over(here, line, name, make, what):
    make(here / name)
    with pytest.raises(ConfigError, match=f"{name}.* is {what}; name a file"):
        raise run(line).exception
    assert [path.name for path in here.iterdir()] == [name]


@pytest.mark.parametrize("line", ["presets --copy", "init none --out"])
@pytest.mark.parametrize("place", ["s3://bucket/x.yaml", "memory://x.yaml", "s3:/bucket/x.yaml", ""])
def test_a_path_that_is_an_address_or_empty_is_refused(here, line, place):
    with pytest.raises(ConfigError, match=r"is not on this machine|is not an address|is empty"):
        raise CliRunner().invoke(cli, [*line.split(), place]).exception
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("place", ["", ".", "..", " "])
@pytest.mark.parametrize("line", ["score none none --out", "sample none --out", "ratio p.npy q.npy --out"])
def test_a_file_without_a_name_is_refused(here, line, place):
    result = CliRunner().invoke(cli, [*line.split(), place])
    with pytest.raises(ConfigError, match=r"--out (is empty|\.* must end in|must name a file)") as raised:
        raise result.exception
    assert ".html" not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [
        "sample none --out x.png -n",
        "ratio p.npy q.npy --waves",
        "ratio p.npy q.npy --hidden",
        "features train x y --width",
        "features train x y --batch-size",
        "pack digits - x --shard-samples",
        "evaluate none --workers",
    ],
)
def test_a_number_that_arrays_cannot_have_is_refused(here, line):
    result = run(f"{line} {10**20}")
    said = f"{result.output} {result.exception}"
    assert result.exit_code == 2 or isinstance(result.exception, ConfigError)
    assert "is too large" in said or "must be below" in said
    assert list(here.iterdir()) == []
