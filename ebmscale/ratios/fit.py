"""`fit_ratio`: the ratio between any two sets of samples, by stages from one of three kinds of base.

Shapes: N samples, Z coordinates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ebmscale.density.bases import Gaussian, SampledOnly
from ebmscale.density.evidence import measure
from ebmscale.density.prior import Base, RatioSequence
from ebmscale.errors import ConfigError, DataError
from ebmscale.networks import ConvRatioNet, Standardised, vector_ratio
from ebmscale.ratios.fitted import FittedRatio, StageRow, in_frame, mean_and_error, total
from ebmscale.ratios.negatives import MovedParticles, Negatives, WeightedSamples
from ebmscale.ratios.samples import Frame, Split, as_pair, as_samples, check_alike, split
from ebmscale.ratios.settings import FitSettings
from ebmscale.ratios.stages import Progress, fit_stages
from ebmscale.seeds import torch_generator


def fit_ratio(
    p: Any,
    q: Any,
    *,
    base: str = "samples",
    settings: FitSettings | None = None,
    seed: int = 0,
    network: nn.Module | None = None,
    progress: Progress = lambda row: None,
    **changes: Any,
) -> FittedRatio:
    """Fits log q - log p.

    Args:
        p: samples (N, ...) as an array or tensor, or a density with `dim`, `log_density` and `from_noise`.
        q: samples (N, ...).
        base: for samples of p, "samples" (nothing is assumed of p; the stages go only as far as p's samples reach) or
            "gaussian" (both p and q are fitted from the Gaussian with p's moments, over any gap).
        settings: how; None takes the defaults.
        seed: of everything random.
        network: a ratio network of flattened samples (N, Z) -> (N,); None makes one as the settings say.
        progress: called at the end of every stage.
        changes: single settings, by name.

    Raises:
        ConfigError: a setting that cannot be.
        DataError: samples that cannot be used, or that do not overlap.
        DivergenceError: the training kept diverging.
    """
    if base not in ("samples", "gaussian"):
        raise ConfigError(f"There is no base {base!r}; use samples or gaussian, or give p as a density.")
    settings = changed(settings or FitSettings(), changes)
    is_density = hasattr(p, "log_density") and hasattr(p, "from_noise")
    if is_density:
        q = as_samples(q, "q")
        frame = Frame.none(q.shape[1:])
        frame.check(q, q.std(0), "q")
    else:
        p, q, pixels = as_pair(p, q)
        check_alike(p.shape[1:], q.shape[1:])
        frame = Frame.of({"p": p, "q": q}, pixels)
        p = frame.inside(p)
    q = frame.inside(q)
    shape = tuple(q.shape[1:])
    inner = network if network is not None else build_network(shape, settings)
    fitting = _Fitting(shape, inner, settings, torch_generator(seed, "fit-ratio"), seed, progress)
    if is_density:
        check_alike((p.dim,), (math.prod(shape),))
        return fitting.from_base(p, fitting.split(q))
    parts_p, parts_q = fitting.split(p), fitting.split(q)
    if base == "samples":
        return in_frame(fitting.from_samples(parts_p, parts_q), frame)
    gaussian = fitted_gaussian(p.flatten(1))
    of_p = fitting.from_base(gaussian, parts_p)
    return in_frame(_against(of_p, fitting.from_base(gaussian, parts_q), parts_p.test, parts_q.test), frame)


def changed(settings: FitSettings, changes: dict[str, Any]) -> FitSettings:
    """The settings with some of them changed.

    Raises:
        ConfigError: there is no setting of a name.
    """
    unknown = set(changes) - set(FitSettings.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"There is no setting {', '.join(sorted(unknown))} of a ratio's fit; see FitSettings.")
    return replace(settings, **changes)


def fitted_gaussian(samples: Tensor, blocks: tuple[int, ...] | None = None) -> Gaussian:
    """The Gaussian with the moments of samples (N, Z); see `Gaussian.fitted`.

    Raises:
        DataError: the samples lie in fewer dimensions than they have coordinates.
    """
    try:
        return Gaussian.fitted(samples, blocks)
    except ValueError:
        raise DataError(
            "The samples lie in fewer dimensions than they have coordinates, so no Gaussian can be fitted: remove "
            "constant and repeated coordinates."
        ) from None


def build_network(shape: tuple[int, ...], settings: FitSettings) -> nn.Module:
    """The network of a stage for points of that shape: convolutions for (C, H, W), else a perceptron."""
    with torch.device("meta"):
        if len(shape) == 3:
            inner: nn.Module = ConvRatioNet((shape[0], shape[1], shape[2]), settings.conv)
        else:
            inner = vector_ratio(
                math.prod(shape), settings.hidden, settings.activation, settings.quadratic, settings.waves
            )
    return inner.to_empty(device="cpu")


@dataclass(frozen=True)
class _Fitting:
    """What every part of one call shares."""

    shape: tuple[int, ...]
    inner: nn.Module
    settings: FitSettings
    generator: torch.Generator
    seed: int
    progress: Callable[[StageRow], None]

    def split(self, samples: Tensor) -> Split:
        return split(samples, self.settings.held_out, self.generator)

    def from_base(self, base: Base, q: Split) -> FittedRatio:
        """The ratio of q to a density that is known."""
        empty = RatioSequence(base, Standardised(self.inner, base.dim))
        negatives = MovedParticles(base, empty, self.settings, self.generator)
        p_test = base.from_noise(torch.randn(len(q.test), base.dim, generator=self.generator))
        return self._measured(*self._stages(empty, q, negatives), negatives, q.test, p_test)

    def from_samples(self, p: Split, q: Split) -> FittedRatio:
        """The ratio of q to p of which there are samples alone."""
        base = SampledOnly(p.train.shape[1])
        negatives = WeightedSamples(p, self.settings, self.generator)
        sequence, rows = self._stages(RatioSequence(base, Standardised(self.inner, base.dim)), q, negatives)
        if rows[0].evidence.auc >= 1:
            raise DataError(
                "p and q do not overlap: held-out samples are told apart without one error, so samples alone cannot "
                "give their ratio; use base='gaussian' (--base gaussian), or give p as a density."
            )
        fitted = self._measured(sequence, rows, negatives, q.test, p.test)
        return replace(fitted, effective=negatives.effective)

    def _stages(self, empty: RatioSequence, q: Split, negatives: Negatives) -> tuple[RatioSequence, list[StageRow]]:
        return fit_stages(empty, q, negatives, self.settings, self.generator, self.seed, self.progress)

    def _measured(
        self, sequence: RatioSequence, rows: list[StageRow], negatives: Negatives, q_test: Tensor, p_test: Tensor
    ) -> FittedRatio:
        """The results, on samples that took no part in the fit."""
        normaliser = negatives.normaliser(sequence)
        f_q, f_p = (total(sequence, part) - normaliser.log_z for part in (q_test, p_test))
        kl, error = mean_and_error(f_q)
        error = math.hypot(error, normaliser.error)
        return FittedRatio(sequence, normaliser, self.shape, kl, error, measure(f_q, f_p), tuple(rows))


def _against(p: FittedRatio, q: FittedRatio, p_test: Tensor, q_test: Tensor) -> FittedRatio:
    """The ratio of q to p, both fitted from one base."""
    ratio = replace(q, reference=p)
    f_q, f_p = (ratio.log_ratio(part.view(-1, *q.shape)) for part in (q_test, p_test))
    kl, error = mean_and_error(f_q)
    error = math.hypot(error, p.normaliser.error, q.normaliser.error)
    return replace(ratio, kl=kl, kl_error=error, calibration=measure(f_q, f_p))
