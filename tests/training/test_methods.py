"""Every method of the prior, training in two stages, and averaged weights: end to end on the embedded digits."""

from typing import Any

import pytest
import torch

import ebmscale
from ebmscale.config import RunConfig
from ebmscale.density.bases import MomentBase
from ebmscale.errors import ConfigError
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.pieces import whole_spans
from ebmscale.model.run_documents import EventLine
from ebmscale.model.run_folder import run_storage
from ebmscale.report.headline import key_figures
from ebmscale.report.run_record import RunRecord
from ebmscale.report.run_report import write_report
from ebmscale.stop import StopSignal
from ebmscale.storage import Storage
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.metrics import EVENTS_FILE, METRICS_FILE, read_lines
from ebmscale.training.opening import open_run
from ebmscale.training.sampling import AverageWeights
from ebmscale.training.update import train_batch
from ebmscale.world import World
from tests.training.test_resume import changed, final_files, run_until

SHORT = {"train": {"max_samples": 640}, "checkpoint": {"every_samples": 320, "keep_last": 100}}
STAGES = {"min_samples": 128, "max_samples": 256, "settle_samples": 96, "evidence_every": 64, "significance": 1e-9}


def method_of(tiny: RunConfig, method: str, name: str = "", **blocks: dict[str, Any]) -> RunConfig:
    config = changed(tiny, **SHORT, stages=STAGES, run={"name": name or method})
    return changed(config, **blocks).model_copy(update={"method": method})


def saved_weights(config: RunConfig, stem: str, prefix: str) -> dict[int, dict[str, torch.Tensor]]:
    """samples_seen -> the whole weights of a stem, for all checkpoints."""
    store, found = CheckpointStore(run_storage(config)), {}
    for name in store.finished():
        saved = store.open(name)
        spans = whole_spans({key: size for key, size in saved.shapes(stem).items() if key.startswith(prefix)})
        found[saved.samples_seen] = {span.name: values for span, values in saved.read(stem, spans).items()}
    return found


def headline_of(model: LatentModel, config: RunConfig) -> str:
    """The state of a run in its report."""
    return key_figures(model, RunRecord.of(run_storage(config)), "digits", [])[0].value


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", ["adaptive", "nce", "tre", "lebm", "gaussian"])
def test_a_method_trains_resumes_loads_and_reports(tiny: RunConfig, method: str, tmp_path: Any) -> None:
    straight, broken = method_of(tiny, method, "straight"), method_of(tiny, method, "broken")
    run_until(straight)
    run_until(broken, stop_after=352)
    run_until(broken)
    assert final_files(broken) == final_files(straight)
    model = ebmscale.load(run_storage(straight).url)
    at_most = {"gaussian": 0, "nce": 1, "lebm": 1, "tre": 3, "adaptive": 3}[method]
    assert straight.most_stages == at_most
    assert model.prior.num_stages == at_most if method != "adaptive" else 1 <= model.prior.num_stages <= at_most
    frozen = final_files(straight)["ratios"]
    assert len(frozen) == (0 if straight.num_live else model.prior.num_stages)
    assert model.sample(3).isfinite().all()
    model.export(Storage.at(tmp_path / "export"))
    exported = ebmscale.load(str(tmp_path / "export"))
    z = torch.randn(4, 4)
    assert torch.equal(exported.log_prior(z), model.log_prior(z))
    assert (model.log_prior(z) != exported.prior.prefix(0).log_density(z)).any() == (method != "gaussian")
    page = run_storage(straight).read_text("report.html") if write_report(run_storage(straight)) else ""
    assert f"at most {at_most}" in page
    if method == "lebm":
        other = straight.model_copy(update={"method": "nce"})
        with pytest.raises(ConfigError, match="made with other values of method"):
            run_until(other)


def test_lebm_trains_its_energy_whatever_the_number_of_stages(tiny: RunConfig) -> None:
    config = method_of(tiny, "lebm", stages={"max_stages": 0}, train={"max_samples": 64})
    run_until(config)
    assert ebmscale.load(run_storage(config).url).prior.log_ratios(torch.ones(1, 4)).any()


@pytest.mark.parametrize(("start", "num_steps"), [("encoder", 0), ("base", 3)])
def test_two_stage_training_fixes_the_generator_and_then_trains_ratios(
    tiny: RunConfig, start: str, num_steps: int
) -> None:
    two = {
        "posterior": {"start": start, "num_steps": num_steps},
        "stages": {"start_samples": 256, **STAGES},
        "train": {"max_samples": 640, "generator": {**tiny.train.generator.model_dump(), "stop_samples": 256}},
        "checkpoint": {"every_samples": 128, "keep_last": 100},
    }
    straight, broken = method_of(tiny, "adaptive", "straight", **two), method_of(tiny, "adaptive", "broken", **two)
    run_until(straight)
    for stop in (160, 256, 416):
        run_until(broken, stop_after=stop)
    run_until(broken)
    assert final_files(broken) == final_files(straight)
    networks, ratios = saved_weights(broken, "generator", ""), saved_weights(broken, "ratio", "weights/")
    assert not same(networks[160], networks[256])
    assert all(same(networks[at], networks[256]) for at in networks if at > 256)
    assert same(ratios[160], ratios[256])
    assert not same(ratios[416], ratios[256])
    assert ebmscale.load(run_storage(broken).url).prior.num_stages > 0
    lines = read_lines(run_storage(straight), METRICS_FILE)
    end = lines[-1]["samples_seen"]
    assert 320 < end <= 640
    found = ["train/mse" in line for line in lines if line["samples_seen"] in (320, end)]
    assert found == [True, False]  # the second has only batches after the stop
    write_report(run_storage(straight))


def test_the_encoder_learns_at_its_own_rate(tiny: RunConfig) -> None:
    moved = {}
    for factor in (1.0, 0.25):
        generator = {**tiny.train.generator.model_dump(), "encoder_factor": factor}
        blocks = {
            "posterior": {"start": "encoder", "num_steps": 1},
            "train": {"max_samples": 64, "generator": generator},
        }
        config = method_of(tiny, "gaussian", f"factor-{factor}", **blocks)
        run = open_run(config, World.alone(), StopSignal())
        before = run.generator.full_weights()
        train_batch(run, next(run.batches()))
        after = run.generator.full_weights()
        moved[factor] = {name: (after[name] - before[name]).abs().max() for name in before}
        run.close()
    for name, most in moved[1.0].items():  # Adam's first step is of the rate's size wherever there is a gradient
        wanted = most * (0.25 if name.startswith("encoder.") else 1.0)
        torch.testing.assert_close(moved[0.25][name], wanted, rtol=1e-3, atol=1e-8, msg=name)


def test_an_average_forgets_half_in_its_half_life() -> None:
    class Weights:
        """An engine whose one weight is what is set."""

        def full_weights(self) -> dict[str, torch.Tensor]:
            return {"w": torch.full((2,), self.now, dtype=torch.float64), "n": torch.tensor(int(self.now))}

        now = 1.0

    engine = Weights()
    average = AverageWeights(engine, World.alone())  # type: ignore[arg-type]
    engine.now = 0.0
    for _ in range(10):
        average.update(0.1)
    values = {one.span.name: one.values for one in average.share()}
    torch.testing.assert_close(values["w"], torch.full((2,), 0.5, dtype=torch.float64))
    assert int(values["n"]) == 0


def test_averaged_weights_are_saved_for_any_world_restored_and_loaded(tiny: RunConfig) -> None:
    generator = {**tiny.train.generator.model_dump(), "ema_samples": 64}
    config = method_of(tiny, "gaussian", train={"max_samples": 128, "generator": generator})
    run_until(config)
    run = open_run(config, World.alone(), StopSignal())
    assert run.average is not None
    averaged = {one.span.name: one.values.clone() for one in run.average.share()}
    loaded = ebmscale.load(run_storage(config).url).networks.state_dict()
    assert all(torch.equal(loaded[name].flatten(), averaged[name].flatten()) for name in loaded)
    assert not same(loaded, run.generator.full_weights())
    ranks = [AverageWeights(run.generator, World(rank, 3, World.alone().device)) for rank in range(3)]
    pieces = {one.span: one.values.clone() for of_rank in ranks for one in of_rank.share()}
    assert sum(len(values.flatten()) for values in pieces.values()) == sum(w.numel() for w in loaded.values())
    assert max(len(of_rank.share()) for of_rank in ranks) < len(loaded)  # the ranks share the writing
    run.close()


def test_a_fitted_base_alone_is_a_prior(tiny: RunConfig) -> None:
    """No stage at all: the first density ratio, in closed form, is fitted where ratios would begin."""
    config = method_of(
        tiny,
        "adaptive",
        "base",
        prior={"base": "moments", "base_components": 2},
        stages=STAGES | {"max_stages": 0, "start_samples": 608},
    )
    run_until(config)
    model = ebmscale.load(run_storage(config).url)
    assert model.prior.num_stages == 0
    assert isinstance(model.prior.base, MomentBase)
    assert model.prior.base.inside is not None
    assert not torch.equal(model.prior.base.cholesky, torch.eye(4))
    assert model.sample(3).isfinite().all()


def test_two_stages_of_training_choose_their_base_and_last_as_they_pay(tiny: RunConfig) -> None:
    """Generator and encoder stop at 320 samples; where the run is interrupted changes nothing."""
    blocks: dict[str, dict[str, Any]] = {
        "posterior": {"start": "encoder", "num_steps": 0},
        "prior": {"base": "moments", "base_components": (1, 2, 3)},
        "stages": STAGES | {"start_samples": 320, "min_samples": 64, "buffer_samples": 128},
        "train": {"max_samples": 960, "generator": {"rate": 1e-3, "stop_samples": 320}},
    }
    straight, broken = (method_of(tiny, "adaptive", name, **blocks) for name in ("straight", "broken"))
    run_until(straight)
    for stop_after in (352, 416, None):
        run_until(broken, **({} if stop_after is None else {"stop_after": stop_after}))
    assert final_files(broken) == final_files(straight)
    events = read_lines(run_storage(straight), EVENTS_FILE, EventLine)
    bases = [event["base"] for event in events if "base" in event]
    assert len(bases) == sum(event["samples_seen"] > 320 for event in events)
    tried = {int(size): nats for size, nats in bases[0]["held_out_nats"].items()}
    assert set(tried) <= {1, 2, 3}
    assert bases[0]["components"] == max(tried, key=lambda size: tried[size])
    model = ebmscale.load(run_storage(straight).url)
    assert isinstance(model.prior.base, MomentBase)
    assert len(model.prior.base.tensors()["weights"]) == bases[0]["components"]
    assert model.samples_seen == events[-1]["samples_seen"] <= 960
    assert events[-1]["state"]["finished"]
    assert "finished" in headline_of(model, straight)
    reasons = [event["reason"] for event in events if "reason" in event]
    assert any("as much work again would add" in reason or "as long as it may be" in reason for reason in reasons)


def test_a_run_ends_once_nothing_is_left_to_train(tiny: RunConfig) -> None:
    """The generator stops at 320 samples, and of the stages none is allowed; a second start has nothing to do."""
    config = method_of(
        tiny,
        "adaptive",
        "rests",
        stages=STAGES | {"max_stages": 0},
        train={"max_samples": 960, "generator": {"rate": 1e-3, "stop_samples": 320}},
    )
    run_until(config)
    before = final_files(config)
    assert CheckpointStore(run_storage(config)).finished()
    model = ebmscale.load(run_storage(config).url)
    assert model.samples_seen == 320
    assert headline_of(model, config) == "finished"
    run_until(config)
    assert final_files(config) == before
