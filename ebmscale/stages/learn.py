"""Learns a sequence of ratios from samples of q and a source of samples of p_k: begin, train, freeze, judge, decide.

Shapes: N samples, Z coordinates.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ebmscale.density.evidence import measure
from ebmscale.density.prior import RatioSequence
from ebmscale.errors import DivergenceError
from ebmscale.networks import WIDE_BOUND, quadratic_part, set_bound
from ebmscale.seeds import torch_generator
from ebmscale.stages.beginning import begin, bound_for, start_from_moments
from ebmscale.stages.draws import Draws, Halted
from ebmscale.stages.record import Memorised, StageRecord
from ebmscale.stages.scheduler import MOMENTS_SAY, Bounds, Budget, Verdict, after, explore, memorises
from ebmscale.stages.settings import StageSettings
from ebmscale.stages.source import Chosen, Grown, PriorSource
from ebmscale.stages.supplies import Negatives, unweighted
from ebmscale.stages.targets import Parts, Target
from ebmscale.stages.trainer import Adam, HeldOut, Trainer, evaluated

Progress = Callable[[StageRecord], None]

CHECKED = 8192
"""Samples of q that a stage's weights are chosen by, at most."""
MOST_LOST = 1.0
"""Nats that a stage may lose by its own bound, as an error; one that loses more has a density without a normaliser."""
MOST_FOR_MOMENTS = 65536
"""Samples of q whose moments are taken."""


@dataclass(frozen=True)
class Course:
    """What every stage of one fit shares.

    Attributes:
        parts: samples of q, in the coordinates of the sequence.
        settings: how stages are learned.
        draws: noise.
        ends_at: the time of the clock by which all is to be done.
        clock: seconds; by default the processor time of this process.
        halted: why no more updates are to be made; None while there may be more.
    """

    parts: Parts
    settings: StageSettings
    draws: Draws
    ends_at: float = math.inf
    clock: Callable[[], float] = time.process_time
    halted: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Learned:
    """What is learned so far.

    Attributes:
        sequence: p_k.
        records: of the stages that are done.
        verdict: whether another begins.
    """

    sequence: RatioSequence
    records: tuple[StageRecord, ...] = ()
    verdict: Verdict = field(default_factory=lambda: Verdict(True, "nothing is learned yet"))

    @property
    def standing(self) -> Grown:
        """log Z as it is, grown by nothing."""
        if not self.records:
            return Grown(0.0, 0.0, 0.0, 0.0)
        return Grown(self.records[-1].log_z, self.records[-1].log_z_error, 0.0, 0.0)


def learn(
    learned: Learned,
    source: PriorSource,
    course: Course,
    progress: Progress = lambda record: None,
    after_part: Callable[[Learned, Trainer], None] = lambda learned, trainer: None,
    resume: Callable[[Trainer], None] | None = None,
) -> Learned:
    """Learn stages until a stage is not significant, or until another would not pay.

    Args:
        learned: the base, or what an earlier call left; the sequence's network is the form of all.
        source: of samples of its prior.
        course: how.
        progress: called at the end of every stage.
        after_part: called after every part of a stage, where a checkpoint can be made (see `state.state_of`).
        resume: brings the first stage to where a checkpoint was made.

    Where the noise of the course raises `Halted`, the stages that are done are the result.

    Raises:
        DivergenceError: a stage diverged.
    """
    while learned.verdict.goes_on:
        began = course.clock()
        try:
            chosen = source.supply()
            trainer = open_stage(learned.sequence, source, chosen, course)
            if resume is not None:
                resume(trainer)
                resume = None
            train(trainer, learned, course, began, after_part)
            learned = close_stage(learned, trainer, source, chosen, course, began)
        except Halted as halted:
            return replace(learned, verdict=Verdict(False, str(halted)))
        progress(learned.records[-1])
    return learned


def open_stage(sequence: RatioSequence, source: PriorSource, chosen: Chosen, course: Course) -> Trainer:
    """The next stage before its first update."""
    stage, draws, settings = sequence.num_stages + 1, course.draws, course.settings.trainer
    q = every(course.parts.tune, draws, "tune", stage)
    q = q[torch.randperm(len(q), generator=torch_generator(draws.seed, "tune-order", stage))[:CHECKED]]
    held_out = HeldOut(q, source.tuning(chosen.supply))
    network = begin(sequence, held_out, settings.bound or WIDE_BOUND, draws.seed)
    head = quadratic_part(network.inner)
    if head is not None and settings.start == "moments":
        q = every(course.parts.train, draws, "moments", stage)[:MOST_FOR_MOMENTS]
        parts = [chosen.supply.draw(CHECKED, -1 - part) for part in range(min(-(-len(q) // CHECKED), 2))]
        p = torch.cat([unweighted(part.z, part.weights) for part in parts])
        start_from_moments(network, head, q, p, held_out)
    engine = Adam(network, settings.weight_decay)
    return Trainer(network, engine, course.parts.train, chosen.supply, held_out, settings, draws, f"stage-{stage}")


def train(
    trainer: Trainer,
    learned: Learned,
    course: Course,
    began: float,
    after_part: Callable[[Learned, Trainer], None],
) -> None:
    """Trains a stage until the scheduler has it settle and it has settled, or memorises.

    Raises:
        DivergenceError: its loss is not finite.
    """
    settings = course.settings.trainer
    if not trainer.curve and trainer.measure() < MOMENTS_SAY:
        trainer.settle("the moments alone tell the two sides apart")
        trainer.settles_for = 0
    while not (trainer.is_done or (trainer.settling_since is not None and memorises(trainer.curve))):
        loss = trainer.run(settings.evidence_every)
        if not math.isfinite(loss):
            raise DivergenceError(f"The held-out loss of {trainer.name} is not finite; lower the rate.")
        if trainer.settling_since is None:
            if settings.bound is None:
                set_bound(trainer.network, bound_for(loss))
            now = course.clock()
            budget = Budget(now - began, course.ends_at - now)
            bounds = Bounds(settings.min_updates, settings.max_updates)
            verdict = explore(trainer.curve, learned.records, budget, bounds)
            if not verdict.goes_on:
                trainer.settle(verdict.reason)
        after_part(learned, trainer)
        halted = course.halted()
        if halted is not None:
            trainer.reason = halted
            break
    trainer.conclude()


def close_stage(
    learned: Learned,
    trainer: Trainer,
    source: PriorSource,
    chosen: Chosen,
    course: Course,
    began: float,
) -> Learned:
    """Finds the gain, freezes the ratio, judges it and decides."""
    sequence, draws = learned.sequence, course.draws
    stage, network, share = sequence.num_stages + 1, trainer.network, source.share
    network.requires_grad_(False)
    judges = every(course.parts.judge, draws, "judge", stage)
    f_judge = evaluated(network, judges)
    fresh = source.judging(chosen.supply)
    memorised = memorisation(trainer, f_judge, fresh)
    evidence = measure(f_judge, unweighted(evaluated(network, fresh.z), fresh.weights))
    strength = source.tilt(network, trainer.held_out.q)
    grown = learned.standing
    added = strength.added(sequence, f_judge, judges)
    if strength.gain > 0:
        sequence = strength.append(sequence, network.state_dict())
        grown = source.accept(sequence)
    per_point = added.view(course.parts.judge.repeats, -1).mean(0)
    record = StageRecord(
        stage=stage,
        updates=trainer.updates,
        best_at=min(trainer.curve, key=lambda one: one.loss).updates,
        supply=chosen.supply.kind,
        supply_reason=chosen.reason,
        share=share,
        evidence=evidence,
        memorised=memorised,
        gain=strength.gain,
        power=strength.power,
        nats=float(per_point.mean()) - grown.by,
        nats_error=math.hypot(float(per_point.std()) / math.sqrt(len(per_point)), grown.by_error),
        log_z=grown.log_z,
        log_z_error=grown.log_z_error,
        work=trainer.work,
        seconds=course.clock() - began,
        reason=trainer.reason,
    )
    if not _adds(record, course.settings.significance):
        return _left_out(learned, record)
    budget = Budget(record.seconds, course.ends_at - course.clock())
    verdict = after(record, budget, course.settings, sum(one.nats for one in learned.records))
    if verdict.goes_on and not source.reaches:
        verdict = Verdict(False, f"{verdict.reason}; too few samples of p reach q for another stage")
    halted = course.halted()
    if halted is not None:
        verdict = Verdict(False, halted)
    return replace(learned, sequence=sequence, records=(*learned.records, record), verdict=verdict)


def _adds(record: StageRecord, significance: float) -> bool:
    """Whether the judge finds p_k better than p_{k-1}; below 0, `significance` says how much worse it may be."""
    return record.nats > max(min(significance, 0.0) * record.nats_error, -MOST_LOST)


def _left_out(learned: Learned, record: StageRecord) -> Learned:
    """What is learned where a stage adds nothing: p_{k-1} stands, and no other stage begins."""
    before = learned.standing
    words = f"KL bound {record.nats:.4f} +- {record.nats_error:.4f} nats is not above 0, so the stage is left out"
    if not record.nats > -MOST_LOST:
        words = "the ratio grows too fast for its density to be normalised, so the stage is left out"
        record = replace(record, nats=0.0, nats_error=0.0)
    record = replace(record, gain=0.0, power=1.0, log_z=before.log_z, log_z_error=before.log_z_error)
    return replace(learned, records=(*learned.records, record), verdict=Verdict(False, words))


def memorisation(trainer: Trainer, f_judge: Tensor, fresh: Negatives) -> Memorised:
    """The loss on what was used and on what was not."""
    draws, batch = trainer.draws, trainer.settings.batch_size
    used = trainer.supply.used(batch, trainer.updates)
    seen = trainer.target.draw(draws.noise(CHECKED, f"{trainer.name}/memorised", trainer.updates))

    def of_negatives(part: Negatives) -> float:
        return float((part.weights.double() * softplus(evaluated(trainer.network, part.z))).mean())

    return Memorised(
        used=of_negatives(used),
        fresh=of_negatives(fresh),
        train=float(softplus(-evaluated(trainer.network, seen)).mean()),
        held_out=float(softplus(-f_judge).mean()),
    )


def every(target: Target, draws: Draws, purpose: str, stage: int) -> Tensor:
    """All samples of a part, as a stage draws them."""
    return target.every(torch_generator(draws.seed, purpose, stage))
