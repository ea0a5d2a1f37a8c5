"""Density ratios between any two sets of samples, and what follows from them."""

from ebmscale.ratios.fit import fit_ratio
from ebmscale.ratios.fitted import FittedRatio, StageRow
from ebmscale.ratios.settings import FitSettings

__all__ = ["FitSettings", "FittedRatio", "StageRow", "fit_ratio"]
