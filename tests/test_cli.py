"""The commands end to end, as a person or a script runs them: output, files and exit codes."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ebmscale
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore
from tests.conftest import PATIENCE_S
from tests.ports import free_port
from tests.program import Done, run_here

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ebmscale", *map(str, arguments)]


def call(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def here(*arguments: str | Path, code: int = 0) -> Done:
    """As `call`, in this process."""
    done = run_here(*arguments)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def one_sentence(done: subprocess.CompletedProcess[str] | Done) -> str:
    """The error that a command ended with: one line on stderr, no traceback."""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


@pytest.fixture
def config(tiny_text: str, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits_url: str) -> Path:
    """A finished run, made by the command line."""
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("finished")
    text = TINY.replace("DATA", digits_url) + f"storage: {{url: {folder}}}\n"
    (folder / "tiny.yaml").write_text(text)
    done = call("train", folder / "tiny.yaml")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"report   {folder}/tiny/report.html"
    assert lines[-4] == f"run      {folder}/tiny"
    assert any("stage 1" in line and "KL >=" in line for line in lines)
    assert any("ETA" in line for line in lines)
    assert "\x1b[" not in done.stdout  # plain lines when not on a terminal
    return folder / "tiny"


def test_training_leaves_what_it_names(finished: Path) -> None:
    assert (finished / "report.html").stat().st_size > 10_000
    assert Image.open(finished / "samples.png").size[0] > 0
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["samples_seen"] for line in lines] == list(range(320, 3201, 320))
    assert set(lines[0]["time"]) >= {"total_s", "posterior_s", "prior_s", "ratio_s", "generator_s", "data_s"}


def test_sample_writes_pictures_and_arrays(finished: Path, tmp_path: Path) -> None:
    here("sample", finished, "-n", "9", "--out", tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").size[0] > 24
    here("sample", finished, "-n", "9", "--out", tmp_path / "x.npz", "--seed", "1")
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["images"].shape == (9, 1, 8, 8)
    assert arrays["images"].dtype == np.uint8
    assert arrays["z"].shape == (9, 4)
    assert "must end in .png or .npz" in one_sentence(here("sample", finished, "--out", tmp_path / "x.gif", code=2))
    assert "beyond the" in one_sentence(here("sample", finished, "--out", tmp_path / "x.png", "--stage", "99", code=2))


def test_pictures_need_no_screen(finished: Path, tmp_path: Path) -> None:
    words = command("sample", finished, "-n", "2", "--out", tmp_path / "x.png")
    environment = {**ENVIRONMENT, "MPLBACKEND": "qt4agg"}  # of a shell's old profile: matplotlib has it no more
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr


def test_an_export_opens_without_the_run_and_gives_the_same(finished: Path, tmp_path: Path) -> None:
    here("export", finished, tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    run, exported = ebmscale.load(str(finished)), ebmscale.load(str(tmp_path / "model"))
    assert torch.equal(run.sample(5, seed=2), exported.sample(5, seed=2))
    x = run.sample(3)
    assert torch.equal(run.reconstruct(x), exported.reconstruct(x))
    assert torch.equal(run.score(x).joint, exported.score(x).joint)
    assert exported.log_prior(torch.zeros(2, 4)).shape == (2,)
    assert "ok" in here("inspect", tmp_path / "model").stdout


def test_loading_needs_neither_ray_nor_deepspeed(finished: Path) -> None:
    script = (
        "import sys; sys.modules['ray'] = None; sys.modules['deepspeed'] = None; sys.modules['webdataset'] = None\n"
        f"import ebmscale; print(ebmscale.load({str(finished)!r}).sample(2).shape)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "2, 1, 8, 8" in done.stdout


def test_inspect_says_what_lies_there(finished: Path, digits_url: str, tmp_path: Path) -> None:
    assert "2 checkpoint(s)" in here("inspect", finished).stdout
    assert "1,797 train" in here("inspect", digits_url).stdout
    assert "holds no run" in one_sentence(here("inspect", tmp_path, code=3))


def test_the_doctor_reports(tmp_path: Path) -> None:
    lines = here("doctor").stdout
    assert "torch" in lines
    assert torch.__version__ in lines


def test_a_dry_run_forecasts_and_leaves_nothing(config: Path, tmp_path: Path) -> None:
    done = here("train", config, "--dry-run")
    assert re.search(r"[1-9][\d,]* generator and encoder, [1-9][\d,]* a ratio", done.stdout), done.stdout
    assert "the run will need" in done.stdout
    assert "a checkpoint" in done.stdout
    assert not (tmp_path / "runs" / "tiny" / "config.yaml").exists()


def test_pack_then_pack_again(tmp_path: Path) -> None:
    first = here("pack", "digits", "-", tmp_path / "digits").stdout
    assert "1,797 train" in first
    again = here("pack", "digits", "-", tmp_path / "digits").stdout
    assert again.replace("already packed, its source has not changed: ", "") == first != again
    assert "digits" in one_sentence(here("pack", "nonsense", "-", tmp_path / "x", code=2))


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("train.batchsize=3", 2, "did you mean train.batch_size?"),
        ("data.url=/nonexistent/place", 3, "/nonexistent/place"),
        ("storage.url=/proc/nowhere", 4, "cannot be written"),
        ("posterior.step_size=1.0e+9", 5, "Training diverged"),
    ],
)
def test_every_kind_of_error_has_its_exit_code(config: Path, override: str, code: int, words: str) -> None:
    extra = ["data.format=null"] if override.startswith("data.url") else []
    assert words in one_sentence(call("train", config, override, *extra, code=code))


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("train.batch_size=many", 2, "train.batch_size"),
        ("precision=fp16", 2, "use bf16 or fp32"),
        ("device=cuda", 2, "no CUDA device"),
        ("train.ratio.rate=1.0e+20", 5, "Training diverged"),
        ("model.generator.form=svhn", 2, "32x32"),
        ("data.validation_fraction=1.0e-4", 3, "raise data.validation_fraction"),
        ("data.held_out.label=11", 2, "has no class '11'; did you mean '1'?"),
    ],
)
def test_a_bad_setting_gets_one_sentence(config: Path, override: str, code: int, words: str) -> None:
    if override == "device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert words in one_sentence(here("train", config, override, code=code))


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    assert "none.yaml" in one_sentence(here("train", tmp_path / "none.yaml", code=2))


@pytest.mark.parametrize(("damage", "words"), [("truncate", "bytes where the manifest says"), ("flip", "sha256")])
def test_damaged_shards_stop_a_run_before_it_starts(config: Path, tmp_path: Path, damage: str, words: str) -> None:
    data = tmp_path / "damaged"
    here("pack", "digits", "-", data)
    shard = next(data.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    if damage == "truncate":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    sentence = one_sentence(here("train", config, f"data.url={data}", "data.verify=sha256", code=3))
    assert words in sentence
    assert shard.name in sentence
    assert words in here("inspect", "--verify", data, code=3).stdout


def test_a_run_whose_every_checkpoint_is_damaged_stops(config: Path, tmp_path: Path) -> None:
    here("train", config, "train.max_samples=640")
    run = tmp_path / "runs" / "tiny"
    (checkpoint,) = (run / "checkpoints").iterdir()
    tensors = checkpoint / "generator-0000-000.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(bytes(content))
    assert "damaged" in here("inspect", run, code=4).stdout
    sentence = one_sentence(here("train", config, "train.max_samples=960", code=4))
    assert "no valid checkpoint" in sentence


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not list(run.glob("checkpoints/*/manifest.json")):
        assert process.poll() is None, "training ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_go_on(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "runs" / "tiny"
    long = command("train", config, "train.max_samples=10000000", "checkpoint.every_samples=320")
    process = subprocess.Popen(long, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(run, process)
    for _ in range(5):  # as an impatient person does
        process.send_signal(number)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"Stopped by {number.name}" in errors
    assert "run the same command to continue" in errors
    saved = newest_position(run)
    done = here("train", config, f"train.max_samples={saved + 320}")
    assert f"resumed at {saved:,} samples" in done.stdout


def test_training_ends_well_though_nobody_reads_and_the_disk_of_the_log_is_full(config: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            command("train", config), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=full, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("run ")
        process.stdout.close()
        assert process.wait(200) == 0
    assert newest_position(tmp_path / "runs" / "tiny") == 3200
    assert (tmp_path / "runs" / "tiny" / "report.html").exists()


def test_a_terminal_that_closes_saves_and_shows_addresses_as_they_are(config: Path, tmp_path: Path) -> None:
    """The live view, on a terminal of its own: its end is a SIGHUP, and then no output works any more."""
    runs = tmp_path / "x[/bold]\x1b[31m"
    long = command("train", config, "train.max_samples=10000000", f'storage.url="{tmp_path}/x[/bold]\\x1b[31m"')
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.execve(long[0], long, ENVIRONMENT)
    seen = b""
    while not (runs / "tiny" / "metrics.jsonl").exists():
        seen += os.read(terminal, 10_000)
    os.close(terminal)
    _, status = os.waitpid(process_id, 0)
    assert os.waitstatus_to_exitcode(status) == 130, seen
    assert newest_position(runs / "tiny") > 0
    assert b"x[/bold]\\x1b[31m/tiny" in seen
    assert b"Traceback" not in seen


def newest_position(run: Path) -> int:
    """Of the newest valid checkpoint."""
    position = CheckpointStore(Storage.at(run)).newest(lambda saved: saved.samples_seen)
    assert position is not None
    return position


def test_after_kill_the_same_command_goes_on(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    long = command("train", config, "train.max_samples=10000000", "checkpoint.every_samples=320")
    process = subprocess.Popen(long, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    wait_for_checkpoint(run, process)
    process.kill()
    process.wait()
    saved = newest_position(run)
    done = here("train", config, f"train.max_samples={saved + 320}")
    assert f"resumed at {saved:,} samples" in done.stdout


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(["engine=plain"], id="plain"),
        pytest.param(
            ["deepspeed.zero_stage=2"], id="zero2", marks=pytest.mark.slow
        ),  # tests/training/test_topologies.py
    ],
)
def test_two_workers_train_what_one_trains_and_hand_over(config: Path, tmp_path: Path, settings: list[str]) -> None:
    """The noise and the data order belong to streams, so the number of workers only changes rounding."""
    arguments = [str(config), "train.max_samples=960", "stages.significance=1.0e-9"]
    here("train", *arguments, "run.name=one", "engine=plain")
    torchrun("train", *arguments, "run.name=two", *settings)
    one, two = (ebmscale.load(str(tmp_path / "runs" / name)) for name in ("one", "two"))
    assert one.prior.num_stages == two.prior.num_stages
    for name, weight in one.networks.state_dict().items():
        torch.testing.assert_close(two.networks.state_dict()[name], weight, rtol=0, atol=2e-4)
    done = here("train", *arguments, "run.name=two", "train.max_samples=1280", "engine=plain")
    assert "resumed at 960 samples" in done.stdout


def torchrun(*arguments: str) -> None:
    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*launcher, "-m", "ebmscale", *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
