"""`fit_ratio`: the ratio between any two sets of samples, by the stages of `ebmscale.stages` from one of three bases.

Shapes: N samples, Z coordinates.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ebmscale.density.bases import SampledOnly
from ebmscale.density.estimates import bridge_estimate
from ebmscale.density.evidence import measure
from ebmscale.density.path import Normaliser
from ebmscale.density.prior import Base, Density, RatioSequence
from ebmscale.errors import ConfigError, DataError, DivergenceError
from ebmscale.model.sampler import total
from ebmscale.networks import Bounded, Standardised, quadratic_part
from ebmscale.ratios.bases import as_base, fitted_gaussian, is_density
from ebmscale.ratios.fitted import FittedRatio, StageRow, in_frame, mean_and_error
from ebmscale.ratios.network import build_network
from ebmscale.ratios.samples import Frame, Split, as_pair, as_samples, check_alike, split
from ebmscale.ratios.settings import FitSettings
from ebmscale.ratios.through_gaussian import against, with_errors_of
from ebmscale.ratios.watch import Watch
from ebmscale.seeds import derive, torch_generator
from ebmscale.stages.draws import Draws, Halted
from ebmscale.stages.from_base import FromBase
from ebmscale.stages.from_samples import FromSamples
from ebmscale.stages.learn import Course, Learned, learn
from ebmscale.stages.particles import measure_normalisers
from ebmscale.stages.targets import Parts, Samples
from ebmscale.stages.trainer import Trainer

Progress = Callable[[StageRow], None]

BASES = ("auto", "samples", "gaussian")
ANY = -1e30
"""Standard errors that any stage exceeds."""
PRECISE = 0.01
"""Standard error of log Z in nats above which it is measured once more, by particles of its own."""
ENOUGH = 0.1
"""Effective share of p's samples above which their fit is taken without another beside it."""
SHARE_OF_Q = 0.7
"""Of the time allowed, where p is fitted too: p lies nearer to the Gaussian with its moments."""


def fit_ratio(
    p: ArrayLike | Density,
    q: ArrayLike,
    *,
    base: Literal["auto", "samples", "gaussian"] = "auto",
    settings: FitSettings | None = None,
    seed: int = 0,
    network: nn.Module | None = None,
    progress: Progress = lambda row: None,
    watch: Watch | None = None,
) -> FittedRatio:
    """Fits log q - log p, in nats, to samples of q and samples or a density of p.

    The ratio is a product of stages (Xiao & Han, NeurIPS 2022), each by noise contrastive estimation.

    Args:
        p: samples (N, ...) as an array or tensor, or a density with `dim`, `log_density` and `from_noise`, such as
            `StandardNormal(Z)`.
        q: samples (M, ...), each of the shape of a sample of p.
        base: for samples of p, "samples" (nothing is assumed of p; the stages go only as far as p's samples reach),
            "gaussian" (both p and q are fitted from the Gaussian with p's moments, over any gap), or "auto": samples
            where they reach q, otherwise gaussian. Where few of them do, both are tried, and the one with the smaller
            held-out loss is taken.
        settings: how to fit; None takes the defaults.
        seed: the seed of all random numbers.
        network: a ratio network that maps flattened samples (N, Z) to (N,); None makes one as the settings say.
        progress: is called with a `StageRow` at the end of every stage.
        watch: is told how far the fit is, and may end it early.

    Returns:
        The fitted ratio; its `log_ratio(x)` maps points (N, ...) to (N,).

    Raises:
        ConfigError: there is no such base.
        DataError: the samples cannot be used, or p and q do not overlap.
        DivergenceError: the training kept diverging.

    Example:
        >>> p, q = np.random.normal(size=(2000, 3)), np.random.normal(1.0, 0.7, size=(2000, 3))
        >>> ratio = fit_ratio(p, q, settings=FitSettings(max_stages=2))
        >>> ratio.log_ratio(q).shape, ratio.interval  # (2000,), KL(q || p) in nats
    """
    if base not in BASES:
        raise ConfigError(f"There is no base {base!r}; use auto, samples or gaussian, or give p as a density.")
    settings, watch = FitSettings.of(settings), watch or Watch()
    watch.begin(settings.budget_s)
    if is_density(p):
        samples = as_samples(q, "q")
        frame = Frame.none(samples.shape[1:])
        frame.check(samples, samples.std(0), "q")
        fitting = _Fitting.of(samples.shape[1:], network, settings, seed, progress, watch)
        check_alike((p.dim,), (samples[0].numel(),))
        watch.begin_side()
        return fitting.from_base(as_base(p), fitting.split(frame.inside(samples)), "q")
    frame, inside_p, inside_q = _paired(cast(ArrayLike, p), q)
    fitting = _Fitting.of(inside_q.shape[1:], network, settings, seed, progress, watch)
    parts_p, parts_q = fitting.split(inside_p), fitting.split(inside_q)
    if base == "gaussian":
        return in_frame(fitting.through_gaussian(parts_p, parts_q), frame)
    fitted = fitting.from_samples(parts_p, parts_q, must_reach=base == "auto")
    if fitted is None:
        return in_frame(fitting.through_gaussian(parts_p, parts_q), frame)
    _check_overlap(fitted)
    if base == "auto" and fitted.effective < ENOUGH and watch.halted() is None:
        fitted = fitting.better_of(fitted, parts_p, parts_q)
    return in_frame(fitted, frame)


def classify(p: ArrayLike, q: ArrayLike, settings: FitSettings, seed: int, watch: Watch | None = None) -> FittedRatio:
    """One stage between samples of p (N, ...) and q (M, ...), as a classifier: they need not overlap.

    Raises:
        DataError: samples that cannot be used.
    """
    frame, inside_p, inside_q = _paired(p, q)
    one_stage, watch = replace(settings, max_stages=1, significance=ANY), watch or Watch()
    watch.begin(settings.budget_s)
    fitting = _Fitting.of(inside_q.shape[1:], None, one_stage, seed, lambda row: None, watch)
    fitted = fitting.from_samples(fitting.split(inside_p), fitting.split(inside_q), must_reach=False)
    assert fitted is not None  # it need not reach q
    return in_frame(fitted, frame)


def _paired(p: ArrayLike, q: ArrayLike) -> tuple[Frame, Tensor, Tensor]:
    """The frame of samples of p (N, ...) and q (M, ...), and the samples in it."""
    of_p, of_q, pixels = as_pair(p, q)
    check_alike(of_p.shape[1:], of_q.shape[1:])
    frame = Frame.of({"p": of_p, "q": of_q}, pixels)
    return frame, frame.inside(of_p), frame.inside(of_q)


def _check_overlap(fitted: FittedRatio) -> None:
    if fitted.stages[0].evidence.auc >= 1:
        raise DataError(
            "p and q do not overlap: held-out samples are told apart without one error, so samples alone cannot "
            "give their ratio; use base='gaussian' (--base gaussian), or give p as a density."
        )


@dataclass(frozen=True)
class _Fitting:
    """What every part of one call shares."""

    shape: tuple[int, ...]
    inner: nn.Module
    settings: FitSettings
    generator: torch.Generator
    seed: int
    progress: Progress
    watch: Watch

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        network: nn.Module | None,
        settings: FitSettings,
        seed: int,
        progress: Progress,
        watch: Watch,
    ) -> "_Fitting":
        shape = tuple(shape)
        inner = network if network is not None else build_network(shape, settings)
        return cls(shape, inner, settings, torch_generator(seed, "fit-ratio"), seed, progress, watch)

    def split(self, samples: Tensor) -> Split:
        return split(samples, self.settings.held_out, self.generator)

    def better_of(self, fitted: FittedRatio, p: Split, q: Split) -> FittedRatio:
        """The ratio that was fitted from p's samples, or one through a Gaussian if its held-out loss is smaller."""
        self.watch.say("few of p's samples reach q, so a fit through a Gaussian is tried too")
        try:
            other = self.through_gaussian(p, q, has_result=True)
        except (DataError, DivergenceError):
            return fitted
        better = min(fitted, other, key=lambda one: _loss(one, p.validation, q.validation))
        halted = self.watch.halted()
        if halted is None or better.stopped is not None:
            return better
        return replace(better, stopped=f"{halted}, before the fit through a Gaussian ended")

    def through_gaussian(self, p: Split, q: Split, has_result: bool = False) -> FittedRatio:
        """The ratio of q to p, both fitted from the Gaussian with the moments of p's samples.

        p is that Gaussian itself where there is no time to fit it.

        Args:
            p: samples.
            q: samples.
            has_result: whether there is a result already, so that the first stage too may be ended early.

        Raises:
            DataError: p's samples lie in fewer dimensions than they have coordinates.
        """
        base = fitted_gaussian(torch.cat(p))
        self.watch.begin_side("q", SHARE_OF_Q, has_result)
        of_q = self.from_base(base, q, "q")
        self.watch.begin_side("p", has_result=True)
        halted = self.watch.halted()
        if halted is not None:
            words = f"{halted}, before p was fitted: the Gaussian with its moments stands for it"
            found = replace(of_q, stopped=words)
        else:
            found = against(self.from_base(base, p, "p"), of_q, p, q)
        return with_errors_of(base, found, torch.cat(p), torch.cat(q))

    def from_base(self, base: Base, q: Split, side: str) -> FittedRatio:
        """The ratio of one side's samples to a density that is known."""
        stages, draws = self.settings.stages, self._draws(f"fit-ratio-{side}")
        empty = RatioSequence(base, Standardised(self.inner, base.dim))
        source = FromBase(empty, stages.particles, draws, stages.gain_limit)
        learned = learn(Learned(empty), source, self._course(q, draws), self._stage_done, self._say)
        standing = learned.standing
        normaliser = Normaliser(standing.log_z, standing.log_z_error, math.nan)
        if normaliser.error > PRECISE:
            groups, size = self.settings.groups, self.settings.group_size
            how = self.settings.final_annealing
            self.watch.say("measuring log Z")
            with suppress(Halted):
                normaliser = measure_normalisers(learned.sequence, groups, size, how, draws)[-1]
        p_test = base.from_noise(torch.randn(len(q.test), base.dim, generator=self.generator))
        return self._measured(learned, normaliser, q, p_test)

    def from_samples(self, p: Split, q: Split, must_reach: bool) -> FittedRatio | None:
        """The ratio of q to p of which there are samples alone; None if they must reach q and do not."""
        stages, draws = self.settings.stages, self._draws("fit-ratio")
        self.watch.begin_side()
        head = quadratic_part(self.inner)
        inner = Bounded(self.inner) if head is not None else self.inner  # a few samples of p must not carry all weights
        empty = RatioSequence(SampledOnly(p.train.shape[1]), Standardised(inner, p.train.shape[1]))
        source = FromSamples((p.train, p.validation, p.test), self.settings.min_ess, stages.gain_limit, draws)
        rows: list[StageRow] = []

        def stage_done(row: StageRow) -> None:
            self.watch.stage_done()
            rows.append(row)

        done = stage_done if must_reach else self._stage_done
        learned = learn(Learned(empty), source, self._course(q, draws), done, self._say)
        if must_reach and not source.reaches and self.watch.halted() is None:
            return None
        for row in rows:
            self.progress(row)
        log_z, log_z_error = bridge_estimate(total(learned.sequence, p.test), total(learned.sequence, q.test))
        normaliser = Normaliser(float(log_z), float(log_z_error), math.nan)
        found = self._measured(learned, normaliser, q, p.test)
        share = source.share if learned.records[-1].gain > 0 else learned.records[-1].share  # of p_k as it stands
        return replace(found, effective=share, repeated=max(found.repeated, p.repeated))

    def _draws(self, purpose: str) -> Draws:
        return Draws(derive(self.seed, purpose), before_each=self.watch.check)

    def _course(self, q: Split, draws: Draws) -> Course:
        """How one side is learned. Seconds pass as the watch has them only where they are limited."""
        parts, watch = Parts(Samples(q.train), Samples(q.validation), Samples(q.test)), self.watch
        clock = watch.clock if math.isfinite(watch.ends_at) else time.process_time
        return Course(parts, self.settings.stages, draws, watch.ends_at, clock, watch.halted)

    def _stage_done(self, row: StageRow) -> None:
        self.watch.stage_done()
        self.progress(row)

    def _say(self, learned: Learned, trainer: Trainer) -> None:
        """Tells the watch how far a stage is."""
        about = f"stage {learned.sequence.num_stages + 1}, {trainer.updates:,} updates"
        loss = f"held-out loss {trainer.curve[-1].loss:.4f}"
        self.watch.say(f"{about}: {'gain and log Z are measured' if trainer.is_done else loss}")

    def _measured(self, learned: Learned, normaliser: Normaliser, q: Split, p_test: Tensor) -> FittedRatio:
        """The results, on samples that took no part in the fit."""
        f_q, f_p = (total(learned.sequence, part) - normaliser.log_z for part in (q.test, p_test))
        kl, error = mean_and_error(f_q)
        of_train, _ = mean_and_error(total(learned.sequence, q.train[: len(q.test)]) - normaliser.log_z)
        missing = max(of_train - kl, 0.0) + self._left(learned, kl)
        error = math.hypot(error, normaliser.error)
        evidence, rows = measure(f_q, f_p), learned.records
        found = FittedRatio(learned.sequence, normaliser, self.shape, kl, error, missing, evidence, rows, len(q.test))
        return replace(found, repeated=q.repeated, stopped=self.watch.halted())

    def _left(self, learned: Learned, kl: float) -> float:
        """Nats that further stages may add: at most as many as the last one, or as one that was left out may have."""
        last = learned.records[-1]
        if last.gain <= 0:
            return max(last.nats + max(self.settings.significance, 0.0) * last.nats_error, 0.0)
        return max(min(last.nats, kl), 0.0) if len(learned.records) > 1 else 0.0


def _loss(fitted: FittedRatio, p: Tensor, q: Tensor) -> float:
    """The loss of a classifier with these log odds between samples of p (N, Z) and of q (M, Z)."""
    f_p, f_q = (fitted.log_ratio(part.view(-1, *fitted.shape)) for part in (p, q))
    return measure(f_q, f_p).loss
