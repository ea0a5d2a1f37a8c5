"""Losses that are not finite, spikes, lost chains: skips, roll-backs and the end, on one worker and on several."""

import io
import json
import math
from typing import Any

import pytest
import torch

from ebmscale.config import GuardBlock, RunConfig
from ebmscale.density.losses import nan_above_limit
from ebmscale.density.schedule import StageState
from ebmscale.errors import DivergenceError
from ebmscale.model.checkpoint import position_of
from ebmscale.model.pixels import to_pixels
from ebmscale.model.posterior import lost
from ebmscale.model.run_documents import GuardState
from ebmscale.model.run_folder import run_storage
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.terminal import Terminal
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.guard import WARM_UPDATES, Guard
from ebmscale.training.loop import train
from ebmscale.training.measurement import _decode
from ebmscale.training.metrics import GUARD_FILE, METRICS_FILE, read_lines
from ebmscale.training.view import View
from ebmscale.world import World

STAGE = StageState()


def test_a_loss_above_its_limit_has_no_finite_gradient() -> None:
    w = torch.ones((), requires_grad=True)
    for watched, limit, fine in [
        (1.0, 2.0, True),
        (3.0, 2.0, False),
        (math.nan, math.inf, False),
        (5.0, math.inf, True),
    ]:
        (gradient,) = torch.autograd.grad(nan_above_limit(2 * w, torch.tensor(watched), limit), w)
        assert (float(gradient) == 2.0) is fine
        assert bool(gradient.isfinite()) is fine


def test_a_limit_exists_once_the_mean_is_known_and_follows_it() -> None:
    guard = Guard(GuardBlock(spike_factor=10))
    for _ in range(WARM_UPDATES):
        assert guard.error_limit == math.inf
        assert guard.observe(0.5, 1.3, STAGE, bad=False) == "good"
    assert guard.error_limit == pytest.approx(5.0)
    assert guard.ratio_limit(STAGE, 1.4) == pytest.approx(13.0)
    assert guard.ratio_limit(STAGE, 20.0) == 20.0
    assert guard.ratio_limit(StageState(stage=2), 1.4) == math.inf  # another stage has other losses
    for _ in range(1000):
        guard.observe(0.1, 1.3, STAGE, bad=False)
    assert guard.error_limit == pytest.approx(1.0)


def test_a_factor_of_zero_knows_no_spikes() -> None:
    guard = Guard(GuardBlock(spike_factor=0))
    for _ in range(2 * WARM_UPDATES):
        guard.observe(0.5, None, STAGE, bad=False)
    assert guard.error_limit == math.inf


def test_bad_updates_in_a_row_lead_back_and_a_good_one_between_forgives() -> None:
    guard = Guard(GuardBlock(max_skips=3))
    verdicts = [guard.observe(9.0, None, STAGE, bad) for bad in (True, True, False, True, True, True)]
    assert verdicts == ["skipped", "skipped", "good", "skipped", "skipped", "roll back"]


def test_every_way_back_lowers_the_rates_until_there_is_none() -> None:
    guard = Guard(GuardBlock(max_rollbacks=2, rate_factor=0.5))
    saved = GuardState(error=0.3, num_good=40, ratio_round=(2, 100))
    for number in (1, 2):
        guard.check_run_rollbacks("it spiked")
        guard.roll_back(saved, shift=50)
        assert guard.state == GuardState(0.3, 40, ratio_round=(2, 150), rollbacks=number, rate_scale=0.5**number)
    with pytest.raises(DivergenceError, match=r"it spiked, after .* 2 times"):
        guard.check_run_rollbacks("it spiked")
    other = Guard(GuardBlock())
    other.load_values(json.loads(json.dumps(guard.values())))
    assert other.state == guard.state


def test_chains_that_are_lost() -> None:
    z = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [math.inf, 0.0], [30.0, 0.0]])
    assert lost(z, 20.0).tolist() == [False, True, True, True]
    assert lost(z, 22.0).tolist() == [False, True, True, False]  # root mean square, not norm


def train_with(config: RunConfig, monkeypatch: pytest.MonkeyPatch, bad: set[int], factor: float) -> Storage:
    """Trains on images that are `factor` times too large in the batches that end at `bad`."""
    calls = {"position": 0}

    class Watching(View):
        def batch(self, batch: Any) -> None:
            calls["position"] = batch.end

    def pixels(images: torch.Tensor) -> torch.Tensor:
        return to_pixels(images) * (factor if calls["position"] in bad else 1.0)

    monkeypatch.setattr("ebmscale.training.update.to_pixels", pixels)
    train(config, Watching(quiet=True), World.alone(), StopSignal())
    return run_storage(config)


@pytest.mark.parametrize("factor", [math.nan, 100.0])
def test_a_bad_batch_is_left_out_and_its_samples_are_named(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    storage = train_with(tiny, monkeypatch, {1600}, factor)
    (line,) = read_lines(storage, GUARD_FILE)
    assert line["action"] == "skipped"
    assert line["samples_seen"] == 1600
    assert len(line["keys"]) == tiny.train.batch_size
    assert all(math.isfinite(one["train/mse"]) for one in read_lines(storage, METRICS_FILE))


def test_a_run_that_spikes_again_and_again_goes_back_and_finishes(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a roll-back the samples continue: none comes twice, and the curve of metrics has no duplicate."""
    storage = train_with(tiny, monkeypatch, {2240, 2272, 2304}, math.nan)
    actions = [line["action"] for line in read_lines(storage, GUARD_FILE)]
    assert actions == ["skipped", "skipped", "roll back", "rolled back"]
    assert read_lines(storage, GUARD_FILE)[-1]["to"] == 1600
    assert read_lines(storage, GUARD_FILE)[-1]["rate_scale"] == 0.5
    positions = [line["samples_seen"] for line in read_lines(storage, METRICS_FILE)]
    assert positions == list(range(320, 3201, 320))
    state = CheckpointStore(storage).newest(lambda saved: saved.values("state"))
    assert state is not None
    assert state["guard"]["rollbacks"] == 1
    assert state["guard"]["rate_scale"] == 0.5


def test_a_run_that_always_diverges_ends_with_its_checkpoints_whole(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DivergenceError, match="had gone back to a checkpoint 3 times"):
        train_with(tiny, monkeypatch, set(range(1632, 4000)), math.nan)
    store = CheckpointStore(run_storage(tiny))
    assert all(info.problem is None for info in store.describe())
    assert position_of(store.finished()[0]) > 1600


def spoil_evidence(monkeypatch: pytest.MonkeyPatch, positions: set[int]) -> None:
    """Makes the reconstructions of held-out images NaN where the run is at one of these positions."""

    def decode(run: Any, z: torch.Tensor) -> torch.Tensor:
        return _decode(run, z) * (math.nan if run.samples_seen in positions else 1.0)

    monkeypatch.setattr("ebmscale.training.measurement._decode", decode)


def test_evidence_that_is_not_finite_sets_the_run_back(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_evidence(monkeypatch, {2080})
    train(tiny, View(quiet=True), World.alone(), StopSignal())
    (line,) = read_lines(run_storage(tiny), GUARD_FILE)
    assert (line["action"], line["samples_seen"], line["to"]) == ("rolled back", 2080, 1600)
    state = CheckpointStore(run_storage(tiny)).newest(lambda saved: saved.state())
    assert state is not None
    assert state.samples_seen == 3200


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ({480}, "no checkpoint to go back to"),
        (set(range(1760, 3200)), "had gone back to a checkpoint 3 times"),
        ({3200}, "at its end"),
    ],
)
def test_evidence_that_stays_so_is_divergence(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, positions: set[int], words: str
) -> None:
    spoil_evidence(monkeypatch, positions)
    with pytest.raises(DivergenceError, match=f"held-out samples are not finite.*{words}|{words}.*not finite"):
        train(tiny, View(quiet=True), World.alone(), StopSignal())


def test_chains_that_leave_their_bound_begin_again_and_are_counted(tiny: RunConfig) -> None:
    blocks = tiny.model_dump(mode="json")
    blocks["guard"]["chain_bound"] = 1.6
    config = RunConfig.model_validate(blocks)
    train(config, View(quiet=True), World.alone(), StopSignal())
    lines = read_lines(run_storage(config), METRICS_FILE)
    assert sum(line["chain/restarted"] for line in lines) > 0
    assert all(math.isfinite(line["train/mse"]) for line in lines)


@pytest.mark.parametrize(
    ("squared_error", "ratio_loss", "words"),
    [
        (0.5, None, "skipped: squared error 0.5 (usually 0.03)"),
        (None, 3.25, "skipped: ratio loss 3.25 (usually 0.7)"),
        (math.nan, 3.25, "skipped: squared error nan (usually 0.03), ratio loss 3.25 (usually 0.7)"),
    ],
)
def test_a_skipped_update_is_shown_with_the_losses_that_were_compared(
    squared_error: float | None, ratio_loss: float | None, words: str
) -> None:
    out = io.StringIO()
    compared = {"squared_error": squared_error, "ratio_loss": ratio_loss}
    usual = {"usual_squared_error": 0.03, "usual_ratio_loss": 0.7}
    View(Terminal(file=out, width=200)).bad(1000, {"action": "skipped", **compared, **usual})
    assert out.getvalue().strip() == f"1,000 samples  {words}"
