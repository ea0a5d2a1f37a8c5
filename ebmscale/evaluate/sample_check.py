"""The check of the samples of every stage, in words."""

from collections.abc import Sequence

from ebmscale.evaluate.rounding import with_error
from ebmscale.evaluate.verdict import Fit, Grade, Verdict
from ebmscale.model.sampler import CHECK_ERRORS, CHECK_NATS, fails_check


def samples_check(fits: Sequence[Fit]) -> list[Verdict]:
    """A verdict where samples of some stage surely have another mean log density than posteriors; else nothing.

    Args:
        fits: under p_0, ..., p_K, each against the posteriors of its own time. p_0 has no ratio, so it is not a stage.
    """
    failed = [fit for fit in fits if fit.stage > 0 and fails_check(fit.gap, fit.error)]
    if not failed:
        return []
    gaps = ", ".join(f"p_{fit.stage} {with_error(-fit.gap, fit.error)}" for fit in failed)
    text = (
        f"The samples of {len(failed)} of {len(fits) - 1} stages fail the check: their mean log density lies more than "
        f"{CHECK_NATS} nats and {CHECK_ERRORS:g} standard errors from that of posteriors (samples minus posteriors, "
        f"in nats: {gaps})."
    )
    last = failed[-1].stage == fits[-1].stage
    grade: Grade = "bad" if last else "unclear"
    rest = "Likelihoods and scores of this prior are off by as much." if last else "Later stages close these gaps."
    return [Verdict("stages' samples", grade, f"{text} {rest}")]
