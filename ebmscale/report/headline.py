"""The head of a run's report: its key figures, and what its numbers mean. Shapes: N latents, Z latent."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ebmscale.evaluate import verdicts
from ebmscale.evaluate.prior_fit import StageSamples, fit_prior
from ebmscale.evaluate.rounding import with_error
from ebmscale.evaluate.verdict import Fit, Stage, Verdict
from ebmscale.model.latent_model import LatentModel
from ebmscale.report.pages import KeyFigure
from ebmscale.report.run_record import RunRecord, number

SEED = 1  # of what is measured of the prior


def verdicts_of(
    model: LatentModel,
    posteriors: Tensor | None,
    drawn: Sequence[StageSamples],
    stages: list[Stage],
    at_freeze: Mapping[int, Fit],
) -> list[Verdict]:
    """What the numbers of the page mean."""
    found: list[Verdict] = []
    if posteriors is not None:
        found = verdicts.of_metric("prior", fit_prior(model, posteriors.cpu(), drawn, SEED), at_freeze)
    last = verdicts.last_stage(stages, model.config.most_stages)
    return [*found, *([last] if last else [])]


def fits_at_freeze(model: LatentModel, record: RunRecord) -> dict[int, Fit]:
    """How earlier stages fitted when they were frozen, if the generator has trained since: their posteriors moved."""
    found, num = record.checks(model.prior.num_stages), model.prior.num_stages
    moved = {event["stage"] for event in record.frozen(num) if event["samples_seen"] < model.config.generator_stops}
    return {stage: fit for stage, fit in found.items() if stage < num and stage in moved}


def key_figures(model: LatentModel, record: RunRecord, data_name: str, stages: list[Stage]) -> list[KeyFigure]:
    """The key figures at the top of the page."""
    budget, seen = model.config.train.max_samples, model.samples_seen
    shape = " x ".join(map(str, model.sample_shape))
    what = f"{shape} images, latents of {model.config.model.latent_dim}"
    if model.is_given:
        what = f"latents of {shape}"
    elif not model.shows_images:
        what = f"samples of {shape}, latents of {model.config.model.latent_dim}"
    measured = next((event for event in reversed(record.events) if "held_out_mse" in event), None)
    ended = not model.config.most_stages or bool((measured or {}).get("state", {}).get("finished"))
    rests = ended and seen >= model.config.generator_stops
    state = "finished" if seen >= budget or rests else f"stopped at {seen / budget:.0%}"
    figures = [
        KeyFigure("State", state, f"{seen:,} of {budget:,} samples seen, seed {model.config.run.seed}"),
        KeyFigure("Data set", data_name, what),
        KeyFigure("Stages K", str(model.prior.num_stages), f"at most {model.config.most_stages}"),
    ]
    if measured:
        note = f"of pixels in [-1, 1], at {measured['samples_seen']:,} samples"
        figures.append(KeyFigure("Held-out MSE", f"{number(measured['held_out_mse']):.4f}", note))
    if stages:
        last = stages[-1]
        bounds = ", ".join(with_error(stage.bound, stage.error) for stage in stages[:-1])
        note = f"nats, of stage {last.number}{f'; before it {bounds}' if bounds else ''}"
        figures.append(KeyFigure("KL bound", with_error(last.bound, last.error), note))
    if record.wall_s is not None:
        figures.append(KeyFigure("Wall time", _duration(record.wall_s), "sum of the recorded intervals"))
    return figures


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
