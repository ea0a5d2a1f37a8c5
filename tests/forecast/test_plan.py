import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.config import RunConfig, parse_config
from ebmscale.data.assign import rows_of
from ebmscale.errors import ConfigError
from ebmscale.forecast.footprint import EngineChoice
from ebmscale.forecast.live_bytes import LiveBytes
from ebmscale.forecast.memory import Share, forecast_memory
from ebmscale.forecast.plan import Network, Traffic, forecast_traffic, impossible_reason, plan
from ebmscale.forecast.timing import Timing, share_of_run
from ebmscale.model.build import build_on_meta

WORKER = Path(__file__).with_name("plan_worker.py")
SHAPE = (1, 8, 8)
WIDE = """
run: {name: wide, seed: 3}
data: {url: DATA, validation_fraction: 0.2, num_streams: 8, shuffle_window: 16}
model: {latent_dim: 16, generator: {width: WIDTH}, ratio: {hidden: [400, 400]}}
posterior: {num_steps: 2, step_size: 0.01, kernel: KERNEL}
prior: {num_particles: 512, num_steps: 2, num_chains: 64, equilibrate_steps: 2}
stages: {max_stages: 1, updates_per_batch: 2, batch_size: 32, buffer_samples: 64, evidence_samples: 64}
train: {batch_size: 16, max_samples: 3200}
metrics: {tensorboard: false}
num_threads: 1
"""


def wide(
    digits_url: str, folder: Path, width: int, kernel: str = "plain", **settings: object
) -> tuple[RunConfig, Path]:
    """A run whose networks weigh more than everything else, and its file."""
    text = WIDE.replace("DATA", digits_url).replace("WIDTH", str(width)).replace("KERNEL", kernel)
    text += f"storage: {{url: {folder / 'runs'}}}\n" + "".join(f"{key}: {value}\n" for key, value in settings.items())
    path = folder / "wide.yaml"
    path.write_text(text)
    return parse_config(text), path


def run_workers(path: Path, what: str, size: int = 1) -> dict[str, float]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
    done = subprocess.run(
        [sys.executable, *several, str(WORKER), str(path), what],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_live_bytes_counts_what_is_made_and_lets_go_of_what_is_freed() -> None:
    outside = torch.empty(1000, device="meta")
    with LiveBytes() as live:
        first = outside + 1
        view = first[10:]
        assert live.now == 4000
        del first
        assert live.now == 4000  # the view keeps it
        second = view * 2
        outside.add_(1)
        del view, second
        assert live.now == 0
    assert live.peak == 4000 + 3960


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_the_largest_share_is_that_of_the_data_order(tiny: RunConfig, size: int) -> None:
    config = tiny.model_copy(
        update={
            "data": tiny.data.model_copy(update={"num_streams": 8}),
            "train": tiny.train.model_copy(update={"batch_size": 37}),
        }
    )
    rows = [len(rows_of(0, 37, 8, rank, size)) for rank in range(size)]
    share = Share.of(config, size)
    assert share.num_rows == max(rows)
    assert share.num_streams == math.ceil(8 / size)


def test_more_workers_than_streams_are_refused_in_a_sentence(tiny: RunConfig) -> None:
    sentence = impossible_reason(tiny, 5)
    assert sentence is not None
    assert "5 workers cannot share data.num_streams=4" in sentence
    assert impossible_reason(tiny, 4) is None
    with pytest.raises(ConfigError, match="cannot share"):
        plan(tiny, [8, 64])


def test_zero_shares_the_training_state_and_leaves_the_sampling_copy_whole(digits_url: str, tmp_path: Path) -> None:
    config, _ = wide(digits_url, tmp_path, 100)
    counts = [sum(p.numel() for p in module.parameters()) for module in build_on_meta(config, SHAPE)]
    peaks = []
    for stage in range(4):
        memory = forecast_memory(config, SHAPE, 1797, EngineChoice(stage), 8)
        shared = 8 if stage else 1
        assert memory.kept["Adam's moments"] == pytest.approx(8 * sum(counts) / shared, rel=1e-3)
        assert memory.kept["sampling copy"] == 4 * counts[0]
        peaks.append(memory.peak)
    assert peaks[0] > peaks[1]
    weights = [forecast_memory(config, SHAPE, 1797, EngineChoice(s), 8).kept["weights"] for s in (2, 3)]
    assert weights[1] < 0.3 * weights[0]


@pytest.mark.parametrize(
    ("stage", "precision", "sent", "num_collectives"),
    [
        (0, "fp32", 6_880_012, 3),
        (1, "fp32", 10_320_048, 9),
        (2, "bf16", 8_935_245, 10),
        (3, "bf16", 6_880_048, 25),
    ],
)
def test_messages_are_those_counted_on_two_real_workers(
    digits_url: str, tmp_path: Path, stage: int, precision: str, sent: int, num_collectives: int
) -> None:
    config, _ = wide(digits_url, tmp_path, 100, precision=precision)
    traffic = forecast_traffic(config, SHAPE, EngineChoice(stage), 2)
    assert traffic.num_bytes == pytest.approx(sent, rel=0.01)
    assert traffic.num_collectives == pytest.approx(num_collectives + 2, abs=0.5)  # see whether all go on


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_real_workers_move_what_is_forecast(digits_url: str, tmp_path: Path, stage: int) -> None:
    config, path = wide(digits_url, tmp_path, 100, engine="deepspeed", deepspeed=f"{{zero_stage: {stage}}}")
    found = run_workers(path, "traffic", size=2)
    traffic = forecast_traffic(config, SHAPE, EngineChoice(stage), 2)
    assert traffic.num_bytes == pytest.approx(found["bytes"], rel=0.02)
    assert traffic.num_collectives == pytest.approx(found["collectives"] + 2, abs=1.5)
    assert found.get("objects", 0) == 0  # no Python object is gathered for a good batch


def test_the_network_costs_bytes_and_rounds() -> None:
    network = Network(bandwidth_gbit=8.0, latency_us=100.0)
    assert network.seconds(Traffic({"gradients": 1e9}, 0), 8) == pytest.approx(1.0)
    assert network.seconds(Traffic({}, 10), 8) == pytest.approx(10 * 3 * 1e-4)
    assert network.seconds(Traffic({}, 10), 1) == 0


def test_a_time_is_a_line_through_both_measurements() -> None:
    timing = Timing.through(whole=1.0, part=0.3, fraction=0.25)
    assert timing.at(1.0) == pytest.approx(1.0)
    assert timing.at(0.25) == pytest.approx(0.3)
    assert Timing.through(1.0, 1.2, 0.5).at(0.1) == pytest.approx(1.0)  # a smaller share is never slower
    assert Timing.through(1.0, 0.0, 0.5).fixed == 0.0


def test_a_share_of_a_run_is_a_run(tiny: RunConfig) -> None:
    share = share_of_run(tiny, 4)
    assert RunConfig.model_validate(share.model_dump()) == share
    assert (share.data.num_streams, share.train.batch_size, share.stages.batch_size) == (1, 8, 8)


def test_a_measured_plan_is_whole(tiny: RunConfig) -> None:
    config = tiny.model_copy(update={"engine": "plain"})
    found = plan(config, [1, 2, 4, 8], Network(10, 50))
    assert [line.size for line in found.forecasts] == [1, 2, 4]
    assert len(found.refused) == 1
    one, two, four = found.forecasts
    assert one.efficiency == pytest.approx(1.0)
    assert found.single_s == pytest.approx(one.update_s)
    assert one.compute_s is not None
    assert two.compute_s is not None
    assert four.compute_s is not None
    assert one.compute_s >= two.compute_s >= four.compute_s > 0
    assert two.network_s > 0
    assert found.process_bytes > 50e6


def test_the_command_prints_tables_and_assumptions(tiny_text: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_text)
    arguments = ["plan", str(path), "--workers", "1,4,512", "--no-measure", "train.batch_size=64"]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    for expected in (
        "ZeRO 3",
        "sampling copy",
        "assumed:",
        "refused: 512 workers",
        "64 rows in 4 streams",
        "10 Gbit/s",
    ):
        assert expected in done.output
    assert "…" not in done.output
    wrong = CliRunner().invoke(cli, ["plan", str(path), "--workers", "many"])
    assert isinstance(wrong.exception, ConfigError)


CASES = [
    ("plain", 0, "fp32", 1),
    pytest.param("plain", 0, "bf16", 1, marks=pytest.mark.slow),
    *(
        pytest.param("deepspeed", stage, precision, size, marks=[pytest.mark.slow, pytest.mark.deepspeed])
        for stage in range(4)
        for precision in ("fp32", "bf16")
        for size in (1, 2)
    ),
]


@pytest.mark.parametrize(("engine", "stage", "precision", "size"), CASES)
def test_peak_memory_is_within_15_percent_of_the_plan(
    digits_url: str, tmp_path: Path, engine: str, stage: int, precision: str, size: int
) -> None:
    config, path = wide(
        digits_url,
        tmp_path,
        320,
        "batch_inner",
        engine=engine,
        deepspeed=f"{{zero_stage: {stage}}}",
        precision=precision,
    )
    found = run_workers(path, "memory", size)
    memory = forecast_memory(config, SHAPE, 1797, EngineChoice(stage if engine == "deepspeed" else None), size)
    assert found["updates"] == pytest.approx(memory.peak, rel=0.15)
    assert found["checkpoint"] == pytest.approx(memory.peak, rel=0.15)
