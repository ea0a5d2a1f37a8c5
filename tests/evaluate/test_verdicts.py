"""The rules by which numbers become sentences: each at both sides of its threshold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.evaluate import verdicts
from ebmscale.evaluate.rounding import rounded, with_error
from ebmscale.evaluate.sample_check import samples_check
from ebmscale.evaluate.verdict import Fit, Stage


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.2734, 0.0712, "1.27 ± 0.07"),
        (1.2734, 0.0123, "1.273 ± 0.012"),
        (-0.0004, 0.03, "-0.00 ± 0.03"),
        (1234.5, 32.1, "1,230 ± 30"),
        (12.5, 0.098, "12.50 ± 0.10"),
        (3.0, 0.0, "3 ± 0"),
        (math.nan, 1.0, "nan ± 1"),
    ],
)
def test_a_value_is_rounded_to_its_error(value, error, text):
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.123"), (1234.56, "1,235"), (25000.0, "25,000"), (1.5e-12, "1.50e-12"), (0.0, "0")]
)
def test_a_value_alone_has_three_digits(value, text):
    assert rounded(value) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_rounding_loses_less_than_half_the_error(value, error):
    shown = float(with_error(value, error).split(" ± ")[0].replace(",", ""))
    assert abs(shown - value) <= 0.51 * error


@pytest.mark.parametrize(
    ("gap", "grade", "words"),
    [
        (0.39, "good", "the same mean log density under p_1"),
        (-0.39, "good", "the same mean log density"),
        (0.41, "bad", "chains miss regions where posteriors lie"),
        (-0.41, "bad", "the prior gives too little mass to some images"),
        (math.nan, "bad", "diverged"),
    ],
)
def test_the_prior_fits_where_both_means_agree_within_two_errors(gap, grade, words):
    found = verdicts.prior_fit([Fit(0, 5.0, 0.1), Fit(1, gap, 0.2)])
    assert found.grade == grade
    assert words in found.text
    assert bool(found.advice) == (grade == "bad" and math.isfinite(gap))
    if math.isfinite(gap):
        assert "p_0 5.00 ± 0.10, p_1" in found.text


def test_exact_samples_of_lower_density_than_posteriors_say_that_the_prior_is_too_wide():
    found = verdicts.prior_fit([Fit(1, 0.5, 0.1)], by_chains=False)
    assert "some samples lie where no posteriors lie" in found.text
    assert found.advice == "Train longer."


def test_too_few_images_tell_nothing_of_the_prior():
    found = verdicts.prior_fit([Fit(0, 5.0, 1.1), Fit(1, 0.2, 1.3)])
    assert found.grade == "unclear"
    assert "the gap under p_1 is 0.2 ± 1.3 nats" in found.text
    assert verdicts.prior_fit([Fit(0, 0.2, 1.0)]).grade == "good"
    assert verdicts.prior_fit([Fit(0, 9.0, 1.3)]).grade == "bad"


@pytest.mark.parametrize(
    ("r_hat", "drift", "grade"),
    [(1.05, 0.0, "good"), (1.06, 0.0, "bad"), (math.nan, 0.0, "bad"), (1.0, 0.5, "bad"), (1.0, 0.09, "good")],
)
def test_chains_mixed_up_to_an_r_hat_of_1_05_and_without_drift(r_hat, drift, grade):
    found = verdicts.mixing(r_hat, 400, drift, 0.01)
    assert found.grade == grade
    assert "400 steps" in found.text
    assert ("--method smc" in found.advice) == (grade == "bad")


def test_only_stages_of_the_prior_are_judged():
    assert verdicts.last_stage([], 0) is None
    assert "the prior is the base density" in verdicts.last_stage([], 3).text
    real = verdicts.last_stage([Stage(1, 2.0, 0.1), Stage(2, 0.3, 0.02)], 3)
    assert (real.grade, real.advice) == ("good", "")
    assert "stage (2) improves the prior: its KL bound is 0.30 ± 0.02 nats" in real.text
    assert "raise stages.max_stages" in verdicts.last_stage([Stage(3, 0.3, 0.02)], 3).advice
    assert "adds little" in verdicts.last_stage([Stage(1, 0.3, 0.2)], 3).text


@pytest.mark.parametrize(
    ("value", "error", "bridge", "grade", "words"),
    [
        (1.27, 0.07, 1.31, "good", "1.27 ± 0.07 nats"),
        (1.27, 0.07, 1.6, "bad", "disagree"),
        (1.27, 0.6, 1.3, "unclear", "known only roughly"),
        (math.inf, 0.1, 1.0, "bad", "no finite estimate"),
    ],
)
def test_how_far_to_trust_log_z(value, error, bridge, grade, words):
    found = verdicts.log_z(value, error, bridge)
    assert found.grade == grade
    assert words in found.text


DISTANCES = {"FD-x": 9.0, "KD-x": 0.5, "KD-x_error": 0.1, "precision": 0.8, "recall": 0.7, "num_manifold": 100.0}


def test_distances():
    differ, comparing = verdicts.of_metric("frechet", DISTANCES)
    assert differ.grade == "bad"
    assert "KD-x is 0.50 ± 0.10: samples differ from images" in differ.text
    assert "FD-x only with distances of the same features" in comparing.text
    same, *_ = verdicts.of_metric("frechet", DISTANCES | {"KD-x": 0.19})
    assert same.grade == "good"
    _, variety, _ = verdicts.of_metric("frechet", DISTANCES | {"recall": 0.3})
    assert "vary less than images" in variety.text


def test_likelihood_and_detection():
    values = {
        "log_likelihood_annealed": -23.0,
        "log_likelihood_annealed_error": 1.0,
        "log_likelihood_upper": -20.0,
        "log_z": 1.0,
        "log_z_error": 0.1,
    }
    wide, log_z = verdicts.of_metric("likelihood", values)
    assert (wide.grade, log_z.grade) == ("unclear", "good")
    assert "between -23 and -20 nats" in wide.text
    assert verdicts.likelihood(values | {"log_likelihood_upper": -22.0}).grade == "good"
    assert "lies below the lower bound" in verdicts.likelihood(values | {"log_likelihood_upper": -25.0}).text
    found = verdicts.detection({"auroc_a": 0.9, "auroc_b": 0.7, "auprc_a": 0.5, "prevalence": 0.1})
    assert "The score a finds anomalies best: AUROC 0.900" in found.text
    assert verdicts.detection({"auroc_a": 0.55}).grade == "bad"


def test_without_log_z_it_is_said_why():
    values = {"gap_p0": 1.0, "gap_p0_error": 0.1, "gap_p1": 0.0, "gap_p1_error": 0.1, "width": 123.4}
    prior, log_z = verdicts.of_metric("prior", values)
    assert (prior.grade, log_z.grade) == ("good", "unclear")
    assert "vary by 123 nats" in log_z.text
    assert [verdict.topic for verdict in verdicts.of_metric("prior", {"gap_p0": 1.0, "gap_p0_error": 0.1})] == ["prior"]


def test_figures_of_samples():
    assert verdicts.of_samples({}) == []
    [weights] = verdicts.of_samples({"Pareto k": 0.71})
    assert (weights.grade, weights.advice) == ("bad", "Draw with --method smc.")
    smc = {"log Z": 1.0, "log Z standard error": 0.1, "log Z by stepping stones": 1.0}
    few, log_z = verdicts.of_samples(smc | {"least effective sample size (fraction)": 0.05})
    assert "Only 5% of the particles were effective" in few.text
    assert log_z.grade == "good"


def test_no_sentence_has_two_negations():
    texts = [
        str(verdict)
        for verdict in (
            verdicts.prior_fit([Fit(0, 1.0, 0.1)]),
            verdicts.mixing(2.0, 9),
            verdicts.last_stage([], 2),
            verdicts.log_z(1.0, 0.1, 2.0),
            *verdicts.of_metric("frechet", DISTANCES | {"recall": 0.1}),
        )
    ]
    for sentence in " ".join(texts).split(". "):
        words = sentence.lower().split()
        assert sum(word in ("not", "no", "never", "none", "cannot", "without") for word in words) <= 1, sentence


def test_a_stage_whose_samples_fail_the_check_is_named():
    """It fails with more than three standard errors and more than half a nat; p_0 is not a stage."""
    assert samples_check([Fit(0, 9.0, 0.1), Fit(1, 0.4, 0.01), Fit(2, -0.9, 0.31)]) == []
    [early] = samples_check([Fit(0, 9.0, 0.1), Fit(1, 0.6, 0.1), Fit(2, 0.0, 0.1)])
    assert early.grade == "unclear"
    assert "1 of 2 stages" in early.text
    assert "p_1 -0.60 ± 0.10" in early.text
    [late] = samples_check([Fit(0, 9.0, 0.1), Fit(1, 0.6, 0.1), Fit(2, -0.7, 0.1)])
    assert late.grade == "bad"
    assert "p_1 -0.60 ± 0.10, p_2 0.70 ± 0.10" in late.text
    assert samples_check([Fit(0, 0.0, 0.1), Fit(1, math.nan, 0.1)])[0].grade == "bad"
    values = {"gap_p0": 1.0, "gap_p0_error": 0.1, "gap_p1": 0.9, "gap_p1_error": 0.1}
    assert [one.topic for one in verdicts.of_metric("prior", values)] == ["prior", "stages' samples"]
