"""The numbers that a run reports, by name. A search can use them as objectives."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ebmscale.config import RunConfig
from ebmscale.density.evidence import Evidence

AT_EVIDENCE = ("held_out_mse", "stage", "num_frozen", *(field.name for field in fields(Evidence)))
"""Reported with every measurement of evidence. Numbers of the ratio are reported while one is trained."""


AT_INTERVAL = (
    *("train/mse", "train/generator_grad_norm", "train/ratio_loss", "train/ratio_grad_norm", "chain/restarted"),
    *("chain/posterior_drift", "chain/posterior_log_density_first", "chain/posterior_log_density_last"),
    *("chain/prior_drift", "chain/prior_log_density", "samples_per_s"),
)
"""Reported with every interval of metrics."""


OF_POSTERIOR_CHAINS = tuple(name for name in AT_INTERVAL if name.startswith("chain/posterior_"))
OF_PRIOR_CHAINS = tuple(name for name in AT_INTERVAL if name.startswith("chain/prior_"))
OF_RATIOS = ("train/ratio_loss", "train/ratio_grad_norm", *(field.name for field in fields(Evidence)))


def why_never(config: RunConfig, name: str) -> str | None:
    """Why a run of this configuration never reports a number; None where it does."""
    if name in OF_POSTERIOR_CHAINS and config.posterior.num_steps == 0:
        return "posterior.num_steps is 0, so no chain infers the latents"
    if name in OF_RATIOS and not config.most_stages:
        return "it trains no ratio"
    if name not in OF_PRIOR_CHAINS or config.method == "lebm":
        return None
    if config.method == "tre":
        return "method tre trains without chains of the prior"
    if config.uses_density:
        return "prior.kind is density, so the prior has no chains while it trains"
    return None if config.most_stages > 1 else "the prior that it trains on is p_0, which needs no chains"


def evidence_report(samples_seen: int, event: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a measurement of evidence."""
    named = {**event, **event.get("evidence", {})}
    return _finite(samples_seen, {name: named.get(name) for name in AT_EVIDENCE})


def interval_report(samples_seen: int, metrics: Mapping[str, Any], num_samples: int) -> dict[str, float]:
    """The finite numbers of the metrics of an interval in which `num_samples` samples were trained."""
    speed = num_samples / max(metrics["time"]["total_s"], 1e-9)
    return _finite(samples_seen, {name: metrics.get(name) for name in AT_INTERVAL} | {"samples_per_s": speed})


def _finite(samples_seen: int, values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: float(v) for name, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
    return {"samples_seen": float(samples_seen), **numbers}
