"""Detection measured by torchmetrics, against scikit-learn and cases that are counted by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from ebmscale.errors import DataError
from ebmscale.evaluate.anomaly import average_precision, detection, roc_area


def test_four_images_by_hand():
    score, is_anomaly = torch.tensor([4.0, 3.0, 2.0, 1.0]).double(), torch.tensor([True, False, True, False])
    assert average_precision(score, is_anomaly) == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)
    assert roc_area(score, is_anomaly) == pytest.approx(3 / 4, abs=1e-6)
    assert roc_area(-score, is_anomaly) == pytest.approx(1 / 4, abs=1e-6)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(2, 300), st.sampled_from([1.0, 1e4]), st.booleans())
def test_agrees_with_scikit_learn(seed, num, scale, tied):
    """Also for ties, and for scores in the thousands, for which a sigmoid is constant."""
    source = np.random.default_rng(seed)
    labels = np.arange(num) % 3 == 0
    score = (source.standard_normal(num) + labels) * scale
    score = np.round(score / scale) if tied else score
    given_scores = torch.from_numpy(score)
    expected = average_precision_score(labels, score), roc_auc_score(labels, score)
    found = average_precision(given_scores, torch.from_numpy(labels)), roc_area(given_scores, torch.from_numpy(labels))
    assert found == pytest.approx(expected, abs=1e-6)


def test_agrees_with_scikit_learn_on_as_many_images_as_the_pooled_protocol_has():
    source = np.random.default_rng(0)
    labels = np.arange(20_000) < 7_000
    score = source.standard_normal(20_000) * 1e3 + labels * 700
    found = detection({"joint": torch.from_numpy(score)}, torch.from_numpy(labels))
    assert found["auprc_joint"] == pytest.approx(average_precision_score(labels, score), abs=1e-6)
    assert found["auroc_joint"] == pytest.approx(roc_auc_score(labels, score), abs=1e-6)
    assert (found["num_anomalies"], found["num_normal"], found["prevalence"]) == (7000, 13000, 0.35)


def test_a_constant_score_is_chance():
    found = detection({"prior": torch.zeros(10).double()}, torch.arange(10) < 3)
    assert found["auprc_prior"] == pytest.approx(found["prevalence"], abs=1e-6)
    assert found["auroc_prior"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("num_anomalies", [0, 5])
def test_images_of_one_kind_are_refused(num_anomalies):
    with pytest.raises(DataError, match=f"{num_anomalies} of the 5 images are anomalies"):
        detection({"joint": torch.zeros(5)}, torch.arange(5) < num_anomalies)
