"""On posteriors of Fashion-MNIST from N(0, I), where the gap is wide: several stages beat one, and no mode is lost.

Shapes: N points, Z coordinates, C clusters.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.model.sampler import draw_density
from ebmscale.networks import Standardised, vector_ratio
from ebmscale.stages.draws import Draws
from ebmscale.stages.from_base import FromBase
from ebmscale.stages.learn import Course, Learned, learn
from ebmscale.stages.settings import StageSettings, TrainerSettings
from ebmscale.stages.targets import Parts, Posteriors

LATENTS = Path("../shared/data/latents/fashion/latents.npz")
TOTAL = 2400
MOST_DIVERGENCE = 0.06
"""Nats between the shares of 15 clusters."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not LATENTS.exists(), reason="the latents of ../shared/data are not here")
def test_four_stages_beat_one_of_as_many_updates() -> None:
    file = np.load(LATENTS)
    parts = {
        name: Posteriors(*(torch.from_numpy(file[f"{name}_{kind}"].astype(np.float32)) for kind in ("mean", "std")))
        for name in ("train", "validation", "test")
    }
    judge = Posteriors(parts["test"].mean[:3000], parts["test"].std[:3000])
    gained = {}
    for stages in (1, 4):
        network = Standardised(vector_ratio(48, (200, 200), "silu", False, squares=True, bounded=True), 48)
        trainer = TrainerSettings(min_updates=TOTAL // stages, max_updates=TOTAL // stages)
        settings = replace(StageSettings(), max_stages=stages, trainer=trainer)
        draws, empty = Draws(0), RatioSequence(StandardNormal(48), network)
        course = Course(Parts(parts["train"], parts["validation"], judge), settings, draws)
        source = FromBase(empty, settings.particles, draws, settings.gain_limit)
        found = learn(Learned(empty), source, course)
        assert sum(one.updates for one in found.records) == TOTAL
        error = sum(one.nats_error**2 for one in found.records) ** 0.5
        gained[stages] = (sum(one.nats for one in found.records), error)
    margin = gained[4][0] - gained[1][0]
    assert margin > 5
    assert margin > 5 * (gained[4][1] + gained[1][1])

    # the clusters of the particles that a next stage would be trained on are as large as those of samples of p_4
    assert source.pool is not None
    clusters = KMeans(15, n_init=1, random_state=0).fit(parts["train"].mean[:10_000].numpy())
    shares = [
        np.bincount(clusters.predict(z.numpy()), minlength=15) / len(z)
        for z in (draw_density(found.sequence, 4096, 1).z, source.pool.rows)
    ]
    assert float((shares[0] * np.log(shares[0] / shares[1].clip(1e-4))).sum()) < MOST_DIVERGENCE
