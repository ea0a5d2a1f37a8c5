"""Density ratios between any two sets of samples, and their uses: mutual information, a two-sample test, outliers."""

from ebmscale.ratios.fit import fit_ratio
from ebmscale.ratios.fitted import FittedRatio, StageRow
from ebmscale.ratios.settings import FitSettings
from ebmscale.ratios.uses import OutOfDistribution, mutual_information, two_sample_test

__all__ = [
    "FitSettings",
    "FittedRatio",
    "OutOfDistribution",
    "StageRow",
    "fit_ratio",
    "mutual_information",
    "two_sample_test",
]
