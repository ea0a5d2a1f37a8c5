"""Comparisons: what a file of rows becomes, what is refused, what is kept, and the table; runs are played by a fake."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.compare import RunFailed, compare, load_comparison, make_jobs
from ebmscale.compare import commands as commands_module
from ebmscale.compare.outcome import measured_values
from ebmscale.compare.rows import EvaluationBlock
from ebmscale.config import RunConfig, load_config
from ebmscale.errors import ConfigError, DamagedError, DataError, EbmscaleError, Interrupted, LostRunError
from ebmscale.evaluate.features import Features
from ebmscale.evaluate.metrics import MetricValues
from ebmscale.model.checkpoint import position_of
from ebmscale.model.image_grid import image_grid
from ebmscale.model.run_folder import CONFIG_FILE
from ebmscale.report import comparison
from ebmscale.report.comparison import JSON_FILE, PAGE_FILE, TABLE_FILE, markdown_table, write_comparison
from ebmscale.report.result import Result
from ebmscale.storage import Storage, open_storage
from ebmscale.training import claim
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.metrics import METRICS_FILE
from ebmscale.training.owner import Lease
from tests.s3_server import S3Server

ROWS: dict[str, Any] = {"plain": {"method": "gaussian"}, "staged": {"stages.max_stages": 2}}


COMPARISONS = sorted((Path(__file__).parents[1] / "configs" / "compare").glob("*.yaml"))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_shipped_comparison_is_valid(path: Path) -> None:
    comparison, jobs = load_comparison(str(path)), make_jobs(str(path), None, 1, [])
    assert [job.row for job in jobs] == list(comparison.rows)


@pytest.fixture
def file(tiny_text: str, tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    return write(tmp_path, {})


def write(folder: Path, changes: dict[str, Any]) -> Path:
    tree = {"name": "few", "config": "tiny.yaml", "set": {"train.max_samples": 640}, "rows": ROWS}
    tree |= {"evaluation": {"metrics": ["reconstruction"], "split": "validation"}} | changes
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


class Commands:
    """In the place of the program's commands: leaves in the run what they would leave, and counts."""

    def __init__(self, folder: Path, failing: str = ""):
        self.calls: list[str] = []
        self._folder, self._failing = folder, failing

    def __call__(self, command: str, *arguments: str, **environment: str) -> None:
        if command == "train":
            config = load_config(arguments[0])
            self.calls.append(f"train {config.run.name}")
            if config.run.name.startswith(self._failing or "\0"):
                raise RunFailed("error: Training diverged | at once.")
            run = Storage.at(f"{config.storage.url}/{config.run.name}")
            run.publish(CONFIG_FILE, config.dump().encode())
            line = {"samples_seen": config.train.max_samples, "num_frozen": 1, "time": {"cpu_s": 2.5}}
            run.publish(METRICS_FILE, (json.dumps(line) + "\n").encode())
            run.publish("samples.png", b"\x89PNG")
            run.publish(f"checkpoints/{config.train.max_samples:012d}-{'0' * 12}/manifest.json", b"{}")
            return
        run = Storage.at(arguments[0])
        self.calls.append(f"evaluate {run.url.rpartition('/')[2]}")
        split, seed = arguments[arguments.index("--split") + 1], float(run.url[-1])
        for of_split, value in ((split, 0.5 + seed), ("train", 99.0)):  # the other record is of an earlier evaluation
            MetricValues("reconstruction", {"mse": value}, {"split": of_split, "num_stages": 1}, 640).save(run)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands(tmp_path)
    monkeypatch.setattr(commands_module.Commands, "run", fake)
    return fake


def run_comparison(file: Path, seeds: int = 2, overrides: tuple[str, ...] = (), forecast: Any = None) -> Any:
    return compare(str(file), None, seeds, overrides, forecast or (lambda config, cpu_s: 1), lambda line: None)


def test_rows_and_seeds_become_runs_whose_settings_are_file_then_row_then_command(file: Path) -> None:
    jobs = make_jobs(str(file), None, 2, ["train.batch_size=64"])
    assert [job.config.run.name for job in jobs] == ["plain-seed0", "staged-seed0", "plain-seed1", "staged-seed1"]
    assert [job.config.run.seed for job in jobs] == [0, 0, 1, 1]
    assert {(job.config.train.max_samples, job.config.train.batch_size) for job in jobs} == {(640, 64)}
    assert [job.config.stages.max_stages for job in jobs[:2]] == [3, 2]
    assert all(job.config.storage.url.endswith("/runs/compare-few") for job in jobs)
    assert [job.row for job in make_jobs(str(file), ["staged", "staged"], 1, [])] == ["staged"]
    file = write(file.parent, {"budget": {"samples": 320}, "first_seed": 7})
    assert {(job.config.train.max_samples, job.config.run.seed) for job in make_jobs(str(file), None, 1, [])} == {
        (320, 7)
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row": {}}, r"unknown key row; did you mean rows\? See configs/compare/"),
        ({"rows": {}}, "rows: "),
        ({"rows": {"a, b": {}}}, r"rows\.a, b"),
        ({"rows": {"a": None}}, r"rows\.a: input should be a mapping of keys"),
        ({"rows": {"a": {"train.rate": 3}}}, "row a of .*unknown key train.rate; did you mean"),
        ({"rows": {"a": {"train.batch_size": "many"}}}, "row a of .*train.batch_size: .*'many'"),
        ({"rows": {"a": {"method": "vae"}}}, "row a of .*method: .*'vae'"),
        ({"config": "none.yaml"}, "none.yaml: No such file"),
        ({"config": "preset:none"}, "there is no preset none"),
        ({"rows": {"a b": {}, "a-b": {}}}, "the rows a b and a-b would share the folder"),
        ({"budget": {"samples": 3, "cpu_s": 3}}, "give samples or cpu_s, not both"),
        ({"evaluation": {"metrics": ["beauty"]}}, "There is no metric 'beauty'"),
        ({"evaluation": {"metrics": []}}, "evaluation.metrics: "),
        ({"evaluation": {"metrics": ["frechet"]}}, "A Frechet distance needs features"),
        ({"evaluation": {"features": "/nonexistent/f"}}, "/nonexistent/f"),
    ],
)
def test_what_cannot_be_compared_gets_one_sentence_before_anything_is_trained(
    file: Path, commands: Commands, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(EbmscaleError, match=words) as raised:
        run_comparison(write(file.parent, changes))
    assert "\n" not in str(raised.value)
    assert not commands.calls


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "rows: {d: 2024-01-01}"])
def test_what_is_no_file_of_rows_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.yaml"
    path.write_text(text)
    for named in (path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match=re.escape(named.name)):
            load_comparison(str(named))


def test_a_row_does_not_change_the_settings_of_the_next_ones(tmp_path: Path, tiny_text: str) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    rows = {"first": {"train.generator.rate": 5.0e-4}, "second": {}}
    path = write(tmp_path, {"set": {"train.max_samples": 640, "train.generator": {"rate": 0.25}}, "rows": rows})
    jobs = make_jobs(str(path), None, 2, [])
    assert [job.config.train.generator.rate for job in jobs] == [5.0e-4, 0.25] * 2


def test_an_unknown_row_is_refused_with_those_there_are(file: Path) -> None:
    for methods, name in (("plain,staggered", "staggered"), ("", "''"), ("plain,", "''")):
        done = CliRunner().invoke(cli, ["compare", str(file), "--methods", methods])
        assert isinstance(done.exception, ConfigError)
        assert f"has no row {name}; its rows are plain, staged" in str(done.exception)


def test_what_a_comparison_sets_itself_cannot_be_set(file: Path) -> None:
    for key in ("run.seed", "run.name"):
        with pytest.raises(ConfigError, match=f"gives each run its {key}; use --seeds"):
            make_jobs(str(file), None, 1, [f"{key}=3"])


def test_what_is_done_is_kept_and_other_settings_are_refused(file: Path, commands: Commands) -> None:
    results, table, url = run_comparison(file)
    assert len(commands.calls) == 8
    assert [result.measured["mse"] for result in results] == [0.5, 0.5, 1.5, 1.5]  # of the asked split
    assert {(result.measured["cpu_s"], result.measured["samples"]) for result in results} == {(2.5, 640)}
    assert "| staged | 2 | 1 ± 0.7071 | 640 |" in table
    commands.calls.clear()
    assert run_comparison(file)[1] == table
    assert commands.calls == []
    run_comparison(file, seeds=3)
    assert commands.calls == [f"{what} {row}-seed2" for row in ROWS for what in ("train", "evaluate")]
    commands.calls.clear()
    for changes in ({"train.ratio.rate": 1e-2}, {"train.max_samples": 960}, {"model.sigma": 0.2}):
        with pytest.raises(ConfigError, match=f"other values of {next(iter(changes))}; give the comparison another"):
            run_comparison(write(file.parent, {"set": {"train.max_samples": 640} | changes}))
    assert commands.calls == []
    other = {"metrics": ["reconstruction"], "split": "validation", "num_samples": 9}
    run_comparison(write(file.parent, {"evaluation": other}), seeds=1)
    assert "evaluate plain-seed0" in commands.calls
    assert Path(url).name == PAGE_FILE


def test_the_result_of_a_run_that_was_deleted_is_not_used_again(file: Path, commands: Commands) -> None:
    run_comparison(file, seeds=1)
    shutil.rmtree(file.parent / "runs" / "compare-few" / "plain-seed0")
    commands.calls.clear()
    rows = ROWS | {"plain": {"method": "gaussian", "model.sigma": 0.2}}
    run_comparison(write(file.parent, {"rows": rows}), seeds=1)
    assert commands.calls == ["train plain-seed0", "evaluate plain-seed0"]


def test_a_damaged_result_is_named_with_what_to_do(file: Path, commands: Commands) -> None:
    url = run_comparison(file, seeds=1)[2]
    results = sorted((Path(url).parent / "results").iterdir())
    results[0].write_text(results[0].read_text()[:50])
    with pytest.raises(DamagedError, match=rf"{results[0].name} is not valid JSON: .* Delete that file, and the run"):
        run_comparison(file, seeds=1)
    results[0].unlink()
    run_comparison(file, seeds=1)


def test_the_split_is_found_and_checked_before_anything_trains(file: Path, commands: Commands) -> None:
    without = write(file.parent, {"evaluation": {"metrics": ["reconstruction"]}})
    said: list[str] = []
    results, _, _ = compare(str(without), None, 1, (), lambda config, cpu_s: 1, said.append)
    assert "evaluation.split: validation, because the data have no test part" in said
    assert [result.measured["mse"] for result in results] == [0.5, 0.5]
    commands.calls.clear()
    wrong = write(file.parent, {"name": "other", "evaluation": {"metrics": ["reconstruction"], "split": "test"}})
    with pytest.raises(DataError, match=r"digits has no test part.*The key of a comparison is evaluation\.split"):
        run_comparison(wrong, seeds=1)
    assert commands.calls == []


def test_a_run_that_fails_is_a_row_that_says_why_and_the_command_fails(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands_module.Commands, "run", Commands(tmp_path, failing="plain"))
    done = CliRunner().invoke(cli, ["compare", str(file), "--seeds", "1"])
    assert isinstance(done.exception, EbmscaleError)
    assert done.exception.exit_code == 1
    assert "1 of 2 runs failed, the first with: error: Training diverged" in str(done.exception)
    assert "| plain | 0 | - | - | - | - | error: Training diverged \\| at once. |" in done.output
    assert "| staged | 1 | 0.5000 | 640 |" in done.output
    monkeypatch.setattr(commands_module.Commands, "run", again := Commands(tmp_path))
    run_comparison(file, seeds=1)
    assert again.calls == ["train plain-seed0", "evaluate plain-seed0"]  # a failure is tried again


def test_a_budget_of_seconds_gives_a_row_the_samples_that_its_forecast_pays_for(file: Path, commands: Commands) -> None:
    asked: list[str] = []

    def forecast(config: RunConfig, cpu_s: float) -> int:
        asked.append(config.run.name)
        return round(cpu_s / {"plain": 1.0, "staged": 4.0}[config.run.name.split("-")[0]]) * 32

    file = write(file.parent, {"budget": {"cpu_s": 40}})
    results, _, _ = run_comparison(file, forecast=forecast)
    assert [result.measured["samples"] for result in results] == [1280, 320, 1280, 320]
    assert asked == ["plain-seed0", "staged-seed0"]  # once for all seeds
    run_comparison(file, forecast=forecast)
    assert len(asked) == 2
    with pytest.raises(ConfigError, match=r"other values of train\.max_samples"):
        run_comparison(write(file.parent, {"budget": {"cpu_s": 80}}), forecast=forecast)
    assert len(asked) == 4  # another budget is another forecast


def test_a_command_that_fails_gives_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailed, match=r"error: cannot read the configuration .*none\.yaml"):
        commands_module.Commands().run("train", "/nonexistent/none.yaml")
    monkeypatch.setattr(commands_module.sys, "executable", "false")  # ends without a word
    with pytest.raises(RunFailed, match="ended with exit code 1"):
        commands_module.Commands().run("train", "x")


def test_the_options_of_an_evaluation_say_all_that_the_file_asks_for() -> None:
    block = EvaluationBlock(
        metrics=("frechet", "latents", "likelihood"), split="test", features=("features/a", "efficientnet_lite0"),
        num_samples={"frechet": 5, "likelihood": 2}, first_seed_only=("likelihood",), by_stage=True,
    )  # fmt: skip
    features = ["--features", "features/a", "--features", "efficientnet_lite0"]
    counts = ["--num-samples", "frechet=5,likelihood=2"]
    first, later = block.of_seed(True), block.of_seed(False)
    assert first.options == ["--metrics", "frechet,latents,likelihood", "--split", "test", *features, *counts]
    assert later.options == ["--metrics", "frechet,latents", "--split", "test", *features, *counts]
    assert (first.by_stage, later.by_stage) == (True, False)
    of_stages = ["--metrics", "frechet,latents", "--split", "test", "--features", "features/a", *counts]
    assert first.of_stages.options == of_stages
    one = EvaluationBlock(metrics=("reconstruction",), split="test", num_samples=7)
    assert one.options == ["--metrics", "reconstruction", "--split", "test", "--num-samples", "reconstruction=7"]
    assert EvaluationBlock(split="test").options == ["--metrics", "reconstruction,frechet", "--split", "test"]


def test_the_table_has_all_distances_and_the_rest_in_the_first_features(tmp_path: Path) -> None:
    run = Storage.at(tmp_path)
    networks = [Features(f"FD-{name}", 2, name * 64, None, lambda x: x) for name in "ab"]
    for network, number in zip(networks, (1.0, 2.0), strict=True):
        kernel = network.kernel_name
        values = {network.name: number, kernel: 3 * number, f"{kernel}_error": 0.5, "precision": number / 10}
        protocol = {"split": "test", "num_stages": 1} | network.protocol()
        MetricValues("frechet", values, protocol, 640).save(run)
        MetricValues("frechet", dict.fromkeys(values, 99.0), protocol | {"num_stages": 0}, 640).save(run)
        ceiling = {f"ceiling_{name}": value / 2 for name, value in values.items()}
        MetricValues("ceiling", ceiling, protocol, 640).save(run)
    block = EvaluationBlock(metrics=("frechet", "ceiling"), split="test", features=("a", "b"))
    found = measured_values(run, block, networks)
    distances = {"FD-a": 1.0, "KD-a": 3.0, "KD-a_error": 0.5, "FD-b": 2.0, "KD-b": 6.0, "KD-b_error": 0.5}
    assert found == distances | {"precision": 0.1} | {f"ceiling_{name}": of / 2 for name, of in distances.items()}
    assert measured_values(run, block.of_stages, networks[:1], stage=0)["FD-a"] == 99.0


def test_earlier_stages_of_the_first_seed_are_measured_with_the_time_until_then(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake's runs have 1 and 2.5 s, and freeze a stage in the second interval."""
    asked: list[list[str]] = []

    def fake(_: object, command: str, *arguments: str, **environment: str) -> None:
        if command == "train":
            config = load_config(arguments[0])
            run = Storage.at(f"{config.storage.url}/{config.run.name}")
            lines = [{"samples_seen": 320, "num_frozen": 0, "time": {"cpu_s": 1.0}}]
            lines += [{"samples_seen": 640, "num_frozen": int(config.method == "adaptive"), "time": {"cpu_s": 2.5}}]
            run.publish(METRICS_FILE, "".join(json.dumps(line) + "\n" for line in lines).encode())
            return
        stage = int(arguments[arguments.index("--stage") + 1]) if "--stage" in arguments else 1
        asked.append([arguments[0].rpartition("/")[2], str(stage)])
        protocol = {"split": "validation", "num_stages": stage}
        MetricValues("latents", {"nats": -5.0 + stage}, protocol, 640).save(Storage.at(arguments[0]))

    monkeypatch.setattr(commands_module.Commands, "run", fake)
    block = {"metrics": ["latents"], "split": "validation", "by_stage": True}
    results, _, url = run_comparison(write(file.parent, {"evaluation": block}))
    assert asked == [["plain-seed0", "1"], ["staged-seed0", "1"], ["staged-seed0", "0"], ["plain-seed1", "1"],
                     ["staged-seed1", "1"]]  # fmt: skip
    assert [list(result.by_stage) for result in results] == [[], [{"stage": 0, "cpu_s": 1.0, "nats": -5.0}], [], []]
    assert run_comparison(write(file.parent, {"evaluation": block}))[0] == results
    kept = json.loads(Path(url).with_name(JSON_FILE).read_text())["results"]
    assert kept[1]["by_stage"] == [{"stage": 0, "cpu_s": 1.0, "nats": -5.0}]
    assert kept[1]["machine"]["torch"] == torch.__version__


@pytest.mark.s3
def test_both_commands_reach_the_server_that_the_storage_names(
    file: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    storage = ("storage.url=s3://bucket/compared", f"storage.endpoint_url={server.url}")
    small = write(file.parent, {"rows": {"plain": {"method": "gaussian"}}})
    (result,), _, _ = run_comparison(small, 1, storage)
    assert result.failure is None
    assert result.measured["mse"] > 0


def test_stopped_commands_save_and_no_other_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = commands_module.Commands()
    commands.stop()
    with pytest.raises(Interrupted, match="finished work is kept"):
        commands.run("train", "x")


VALUES = {"a": [0.123, 0.456, 0.789], "b": [12.3, 45.6, 78.9]}


def test_no_command_outlives_a_comparison_that_is_killed(tmp_path: Path) -> None:
    child, noted = tmp_path / "child", tmp_path / "pid"
    child.write_text(f"#!/bin/sh\necho $$ > {noted}.part && mv {noted}.part {noted} && exec sleep 600\n")
    child.chmod(0o755)
    code = (
        f"import sys; from ebmscale.compare.commands import Commands; sys.executable = {str(child)!r}; Commands().run()"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as comparing:
        wait_for(noted.exists)
        comparing.kill()
    pid = int(noted.read_text())
    wait_for(lambda: claim._start_of(pid) in (None, "ended"))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def results_of(url: str) -> list[Result]:
    return [
        Result(row, seed, f"{url}/{row}-{seed}", {"mse": value, "cpu_s": 10.0 * value}, None)
        for row, values in VALUES.items()
        for seed, value in enumerate(values)
    ]


def test_the_table_holds_means_and_standard_deviations_over_seeds() -> None:
    lines = markdown_table(results_of("x")).splitlines()
    assert lines[0] == "| row | seeds | mse | cpu_s |"
    for line, (row, values) in zip(lines[2:], VALUES.items(), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:2] == [row, "3"]
        mean, deviation = (float(number) for number in cells[2].split(" ± "))
        assert mean == pytest.approx(np.mean(values), abs=0.005)
        assert deviation == pytest.approx(np.std(values, ddof=1), abs=0.005)
    odd = markdown_table([Result("a", 0, "x", {"mse": float("nan")}, None)])
    assert "| a | 1 | nan |" in odd


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    storage, results = Storage.at(tmp_path), results_of(str(tmp_path))
    Storage.at(results[0].url).publish("samples.png", image_grid(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 2))
    table = write_comparison(storage, "few", "Rows <side> by side", results)
    page = storage.read_text(PAGE_FILE)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "Rows &lt;side&gt; by side" in page
    assert page.count('src="data:image/png') == 1
    assert 'src="data:image/svg' in page
    assert storage.read_text(TABLE_FILE) == table
    assert len(json.loads(storage.read_text(JSON_FILE))["results"]) == 6


def one_seed(**rows: dict[str, float]) -> list[Result]:
    return [Result(row, 0, f"x/{row}", values, None) for row, values in rows.items()]


def test_a_page_of_one_seed_shows_no_spread(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    values = {"mse": 0.5, "psnr": 9.0, "mse_unit": 0.125, "FD-x": 3.0, "KD-x": 0.1, "KD-x_error": 0.01, "num_x": 5.0}
    rows = one_seed(good=values, bad={name: 2 * value for name, value in values.items()})
    table = write_comparison(storage, "few", "", rows)
    page = storage.read_text(PAGE_FILE)
    assert "Its variation between seeds is unknown" in page
    assert "±" not in page
    assert "every dot is a seed" not in page
    assert "The table scrolls sideways" in page
    assert "| row | seeds | mse | psnr | mse_unit | FD-x | KD-x |" in table
    charts = re.findall(r"<figcaption>([^<]*)</figcaption>", page)
    assert charts == ["mse", "FD-x", "KD-x"]  # one chart a fact
    assert re.findall(r"<b>([^<]*)</b>", page) == ["0.5000", "0.1250", "3", "0.1000", "18"]


def test_only_what_can_be_better_is_compared(tmp_path: Path) -> None:
    """Of the gaps the last one counts, which is best near 0. A diagnostic such as log Z is best nowhere."""
    more = {"width": 0.1, "log_z": 0.01, "log_z_error": 0.001, "log_z_bridge": 0.02}
    rows = one_seed(
        none={"mse": 0.5, "gap_p0": 3.0, "gap_p0_error": 0.1},
        some={"mse": 0.4, "gap_p0": 3.0, "gap_p0_error": 0.1, "gap_p1": -0.25, "gap_p1_error": 0.1, **more},
    )
    table = write_comparison(Storage.at(tmp_path), "gaps", "", rows)
    assert table.splitlines()[0] == "| row | seeds | mse | gap |"
    page = Storage.at(tmp_path).read_text(PAGE_FILE)
    assert re.findall(r"<b>([^<]*)</b>", page) == ["0.4000", "-0.2500"]
    assert "nearer to 0 is better" in page
    assert json.loads(Storage.at(tmp_path).read_text(JSON_FILE))["results"][1]["measured"]["log_z"] == 0.01


def test_nats_of_which_log_z_is_known_roughly_are_marked_and_not_the_best() -> None:
    rows = one_seed(
        sure={"nats": -24.0, "log_z_error": 0.1},
        base={"nats": -28.0},
        rough={"nats": -21.5, "log_z_error": 0.9},
        undefined={"nats": -20.0, "log_z_error": math.nan},
    )
    table = markdown_table(rows)
    assert "| rough | 1 | -21.50 (log Z ± 0.9000) |" in table
    assert "| undefined | 1 | -20 (log Z ± nan) |" in table
    assert "| sure | 1 | -24 |" in table
    assert comparison.best(rows, ["nats"]) == [[True], [False], [False], [False]]


def test_the_axis_starts_where_it_means_something() -> None:
    assert comparison._origin("mse", {"a": [0.5]}) == 0.0
    assert comparison._origin("auroc_joint", {"a": [0.9]}) == 0.5
    assert comparison._origin("KD-x", {"a": [-0.1, 2.0]}) is None
    assert comparison._origin("psnr", {"a": [20.0]}) is None


def test_a_signal_to_the_group_saves_what_trains(file: Path, tmp_path: Path) -> None:
    """As a shell sends it: to the comparison and to the run that it has started."""
    words = ["compare", str(file), "--seeds", "1", "--methods", "plain", "train.max_samples=10000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ebmscale", *words, "checkpoint.every_samples=320"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "RANK": "left over"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run = tmp_path / "runs" / "compare-few" / "plain-seed0"
    while not list(run.glob("checkpoints/*/manifest.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == f"stopped: {commands_module.STOPPED}"
    assert "Traceback" not in said + errors
    saved = CheckpointStore(Storage.at(run)).finished()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["samples_seen"]
    assert position_of(saved[0]) >= last


def test_a_comparison_has_one_writer(file: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE_S", 0.05)
    storage = open_storage(make_jobs(str(file), None, 1, [])[0].config.storage)
    with Lease(storage, what="comparison") as lease:
        lease.take()
        with pytest.raises(LostRunError, match=r"The comparison .* is being written by process"):
            run_comparison(file)
    assert commands.calls == []
    run_comparison(file)
    assert len(commands.calls) == 8
