"""What the numbers of a run mean: pure functions from values to sentences.

The report, `ebmscale sample` and `ebmscale evaluate` use them. Every rule has one threshold, which is named below. All
errors are standard errors. A difference counts if it exceeds two of them.
"""

import math
from collections.abc import Mapping, Sequence

from ebmscale.evaluate.rounding import rounded, with_error
from ebmscale.evaluate.sample_check import samples_check
from ebmscale.evaluate.verdict import Fit, Grade, Stage, Verdict

STANDARD_ERRORS = 2.0
"""A difference counts if it is larger than this many standard errors."""
KNOWN_GAP = 1.0
"""Nats. With a larger standard error, a real gap between posteriors and samples could go undetected."""
MIXED_R_HAT = 1.05
"""Chains with a larger R-hat did not mix."""
SMALL_DRIFT = 0.1
"""Standard deviations of the log density. A smaller drift of the chains does not matter."""
KNOWN_LOG_Z = 0.5
"""Nats. With a larger standard error log Z is known only roughly."""
RELIABLE_PARETO_K = 0.7
"""Importance weights with a larger Pareto k are unreliable (Vehtari et al. 2024)."""
FEW_EFFECTIVE = 0.1
"""A fraction. With fewer effective particles, an estimate depends on few of them."""
MORE_TO_GAIN = 0.05
"""Nats. If the bound of the last stage is above this by two standard errors, another stage may gain more."""
LOW_RECALL = 0.5
"""Times precision. With a lower recall samples vary less than images."""
NEAR_CHANCE = 0.6
"""An AUROC below this is near chance, which is 0.5."""


def prior_fit(fits: Sequence[Fit], by_chains: bool = True) -> Verdict:
    """Whether the prior fits: the mean log density of posteriors and of samples, stage by stage.

    Equal means are necessary for a good fit, but not sufficient. So the sentence claims no more than equal means.

    Args:
        fits: under p_0, ..., p_K.
        by_chains: whether the samples are the ends of Langevin chains.
    """
    last, at = fits[-1], f"under p_{fits[-1].stage}"
    stages = ", ".join(f"p_{fit.stage} {with_error(fit.gap, fit.error)}" for fit in fits)
    gaps = f"Gap by stage, in nats: {stages}."
    if not all(math.isfinite(number) for number in (last.gap, last.error)):
        return Verdict("prior", "bad", "The log densities are infinite or undefined, so the model has diverged.")
    size = with_error(abs(last.gap), last.error)
    agrees = abs(last.gap) <= STANDARD_ERRORS * last.error
    if agrees and last.error > KNOWN_GAP:
        text = f"Too few images to tell: the gap {at} is {with_error(last.gap, last.error)} nats. {gaps}"
        return Verdict("prior", "unclear", text, "Measure on more images (--num-samples, or a larger set).")
    if agrees:
        text = f"Posteriors and samples have the same mean log density {at} (gap {size} nats), as for a "
        return Verdict("prior", "good", f"{text}prior that fits. {gaps}")
    if last.gap < 0:
        text = f"Samples have a mean log density {at} that is {size} nats above that of posteriors, so the prior "
        advice = "Train longer, or allow more stages (stages.max_stages)."
        return Verdict("prior", "bad", f"{text}gives too little mass to some images. {gaps}", advice)
    text = f"Posteriors have a mean log density {at} that is {size} nats above that of samples, so "
    if by_chains:
        advice = "Give chains more steps (prior.sample_steps), draw with --method smc, or train longer."
        return Verdict("prior", "bad", f"{text}chains miss regions where posteriors lie. {gaps}", advice)
    return Verdict("prior", "bad", f"{text}some samples lie where no posteriors lie. {gaps}", "Train longer.")


def mixing(r_hat: float, num_steps: float, drift: float = 0.0, drift_error: float = 0.0) -> Verdict:
    """Whether the chains mixed.

    Args:
        r_hat: the largest over coordinates and log density.
        num_steps: of the chains, over which they were examined.
        drift: change of their mean log density, in its standard deviations.
        drift_error: its standard error.
    """
    steps = rounded(num_steps)
    more = "Draw with --method smc, or give chains more steps (prior.sample_steps)."
    if not r_hat <= MIXED_R_HAT:
        text = (
            f"The chains did not mix over {steps} steps: the largest R-hat is {r_hat:.2f}, and mixed chains have at "
            f"most {MIXED_R_HAT}. Samples depend on where the chains started."
        )
        return Verdict("chains", "bad", text, more)
    if abs(drift) > max(STANDARD_ERRORS * drift_error, SMALL_DRIFT):
        text = (
            f"The chains still move as a whole: their log density changed by {with_error(drift, drift_error)} standard "
            f"deviations over {steps} steps."
        )
        return Verdict("chains", "bad", text, more)
    return Verdict("chains", "good", f"The chains mixed: the largest R-hat over {steps} steps is {r_hat:.2f}.")


def last_stage(stages: Sequence[Stage], max_stages: int) -> Verdict | None:
    """Whether the last frozen stage improves the prior; None if the run trains no ratio.

    Args:
        stages: that are part of the prior, in order. They do not include a stage that was rejected.
        max_stages: the largest number of stages.
    """
    if not max_stages:
        return None
    if not stages:
        text = "No stage is frozen, so the prior is the base density p_0."
        advice = "Train longer (train.max_samples), or begin the ratios earlier (stages.start_samples)."
        return Verdict("stages", "unclear", text, advice)
    stage, bound, error = stages[-1]
    size = with_error(bound, error)
    if not bound > STANDARD_ERRORS * error:
        return Verdict(
            "stages",
            "unclear",
            f"The last frozen stage ({stage}) adds little: its KL bound of {size} nats is within two standard errors "
            "of zero.",
            "Measure it on more held-out images (stages.evidence_samples).",
        )
    text = f"The last frozen stage ({stage}) improves the prior: its KL bound is {size} nats."
    if stage >= max_stages and bound - STANDARD_ERRORS * error > MORE_TO_GAIN:
        return Verdict("stages", "unclear", text, "Another stage may gain more: raise stages.max_stages.")
    return Verdict("stages", "good", text)


def log_z(value: float, error: float, bridge: float) -> Verdict:
    """How far log Z can be trusted, by its standard error and its agreement with the estimate by stepping stones."""
    found = with_error(value, error)
    if not all(map(math.isfinite, (value, error, bridge))):
        return Verdict("log Z", "bad", "log Z has no finite estimate, so log p(z) and log p(x) have none either.")
    if abs(value - bridge) > max(3 * error, 0.05):
        return Verdict(
            "log Z",
            "bad",
            f"The two estimates of log Z disagree: {found} by weights, {rounded(bridge)} by stepping stones. The "
            "particles lost the path from p_0 to the prior, so log p(z) and log p(x) are not to be trusted.",
            "Train shorter stages (a lower stages.max_samples), so that neighbouring priors differ less.",
        )
    if error > KNOWN_LOG_Z:
        return Verdict(
            "log Z",
            "unclear",
            f"log Z is known only roughly: {found} nats. Differences of log p(x) between images hold.",
        )
    return Verdict("log Z", "good", f"log Z is {found} nats, and two estimates agree.")


def wide_stages(width: float) -> Verdict:
    """Why log Z was left out: the log ratios of the stages vary by `width` nats, so an estimate would take long."""
    text = f"log Z is left out: the stages' log ratios vary by {rounded(width)} nats, so an estimate would take long."
    return Verdict("log Z", "unclear", text, "`ebmscale sample RUN --method smc` estimates it.")


def weights(pareto_k: float) -> Verdict:
    """Whether importance weights are reliable."""
    text = f"Pareto k is {pareto_k:.2f}, and weights are reliable up to {RELIABLE_PARETO_K}"
    if not pareto_k <= RELIABLE_PARETO_K:
        return Verdict(
            "weights", "bad", f"{text}, so a few candidates dominate these samples.", "Draw with --method smc."
        )
    return Verdict("weights", "good", f"{text}.")


def particles(ess: float) -> Verdict | None:
    """Warns of too few effective particles; None if the least effective sample size, a fraction, is high enough."""
    if ess >= FEW_EFFECTIVE:
        return None
    text = f"Only {ess:.0%} of the particles were effective at one step, so some samples may be near copies of others."
    return Verdict("particles", "unclear", text, "Ask for more samples: they are drawn from more particles.")


def distances(values: Mapping[str, float], name: str, kernel_name: str) -> list[Verdict]:
    """What a Frechet and a kernel distance, precision and recall mean."""
    value, error, num = values[kernel_name], values[f"{kernel_name}_error"], values["num_manifold"]
    known = f"{kernel_name} is {with_error(value, error)}"
    if abs(value) <= STANDARD_ERRORS * error:
        text = f"{known}: these features show no difference between {rounded(num)} samples and images."
        found = [Verdict("samples", "good", text, "More samples (--num-samples) would show smaller differences.")]
    else:
        found = [Verdict("samples", "bad", f"{known}: samples differ from images in these features.")]
    if values["recall"] < LOW_RECALL * values["precision"]:
        both = f"Recall {values['recall']:.2f} is far below precision {values['precision']:.2f}"
        text = f"{both}: samples vary less than images."
        found.append(
            Verdict("variety", "bad", text, "Check whether the chains mix (`ebmscale sample RUN --out x.png`).")
        )
    text = f"Compare {name} only with distances of the same features, and of as many images and samples."
    return [*found, Verdict("comparing", "unclear", text)]


def likelihood(values: Mapping[str, float]) -> Verdict:
    """How exactly log p(x) is known: the gap between its bounds."""
    low, high = values["log_likelihood_annealed"], values["log_likelihood_upper"]
    error = values["log_likelihood_annealed_error"]
    if high < low:
        return Verdict(
            "likelihood",
            "unclear",
            f"The upper bound {rounded(high)} lies below the lower bound {rounded(low)}, so the posterior chains from "
            "which the upper bound starts are too short. The lower bound holds.",
            "Give posterior chains more steps (posterior.num_steps).",
        )
    text = f"log p(x) of an image lies between {rounded(low)} and {rounded(high)} nats on average"
    narrow = high - low <= max(STANDARD_ERRORS * error, 1.0)
    grade: Grade = "good" if narrow else "unclear"
    end = "which is exact enough to compare models" if narrow else "so small differences between models cannot be seen"
    return Verdict("likelihood", grade, f"{text}, {end}.")


def detection(values: Mapping[str, float]) -> Verdict:
    """Whether anomalies are found, and by which score."""
    scores = {name.removeprefix("auroc_"): value for name, value in values.items() if name.startswith("auroc_")}
    best = max(scores, key=lambda name: scores[name])
    text = f"The score {best} finds anomalies best: AUROC {scores[best]:.3f} (chance is 0.5)"
    if f"auprc_{best}" in values:
        text += f", AUPRC {values[f'auprc_{best}']:.3f} (chance is {values['prevalence']:.3f})"
    near = scores[best] < NEAR_CHANCE
    return Verdict(
        "detection", "bad" if near else "good", f"{text}{', so all scores are near chance' if near else ''}."
    )


def of_samples(figures: Mapping[str, float]) -> list[Verdict]:
    """What the figures mean that `sampling.draw` returns with its samples."""
    found: list[Verdict | None] = []
    if "largest R-hat" in figures:
        drift = figures.get("drift of the log density (standard deviations)", 0.0)
        found.append(
            mixing(figures["largest R-hat"], figures["steps"], drift, figures.get("drift's standard error", 0.0))
        )
    if "Pareto k" in figures:
        found.append(weights(figures["Pareto k"]))
    if "least effective sample size (fraction)" in figures:
        found.append(particles(figures["least effective sample size (fraction)"]))
    if "log Z by stepping stones" in figures:
        found.append(log_z(figures["log Z"], figures["log Z standard error"], figures["log Z by stepping stones"]))
    return [verdict for verdict in found if verdict]


def of_metric(metric: str, values: Mapping[str, float], at_freeze: Mapping[int, Fit] | None = None) -> list[Verdict]:
    """What the values of one metric of `ebmscale evaluate` mean.

    Args:
        metric: its name.
        values: its values.
        at_freeze: how stages fitted when they were frozen, by stage; for those whose posteriors have moved since.
    """
    if metric == "prior":
        stages = range(sum(name.startswith("gap_p") for name in values) // 2)
        fits = [Fit(k, values[f"gap_p{k}"], values[f"gap_p{k}_error"]) for k in stages]
        checked = [(at_freeze or {}).get(fit.stage, fit) for fit in fits]
        found = [prior_fit(fits, by_chains="r_hat" in values), *samples_check(checked)]
        if "r_hat" in values:
            found.append(mixing(values["r_hat"], values["r_hat_steps"], values["drift"], values["drift_error"]))
        if "log_z" in values:
            found.append(log_z(values["log_z"], values["log_z_error"], values["log_z_bridge"]))
        elif math.isfinite(values.get("width", math.nan)):  # a prior without stages is normalised and has no width
            found.append(wide_stages(values["width"]))
        return found
    if metric == "frechet":
        name = next(name for name in values if name.startswith("F"))
        kernel_name = next(name for name in values if name.startswith("K"))
        return distances(values, name, kernel_name)
    if metric == "likelihood" and "log_likelihood" in values:
        return [log_z(values["log_z"], values["log_z_error"], values["log_z"])]
    if metric == "likelihood":
        return [likelihood(values), log_z(values["log_z"], values["log_z_error"], values["log_z"])]
    return [detection(values)] if metric == "anomaly" else []
