"""Whole stages: what they find, what they do not memorise, and that an interruption changes nothing."""

from dataclasses import replace

import pytest
import torch

from ebmscale.density.prior import RatioSequence, StandardNormal
from ebmscale.networks import Standardised, vector_ratio
from ebmscale.stages.draws import Draws
from ebmscale.stages.from_base import FromBase
from ebmscale.stages.learn import Course, Learned, learn
from ebmscale.stages.settings import ParticleSettings, StageSettings, TrainerSettings
from ebmscale.stages.state import State, restored, state_of
from ebmscale.stages.targets import Parts, Posteriors, Samples
from ebmscale.stages.trainer import Adam, Trainer

SETTINGS = StageSettings(
    max_stages=2,
    trainer=TrainerSettings(batch_size=128, min_updates=80, max_updates=160, evidence_every=20),
    particles=ParticleSettings(
        pool_size=1024, num_tune=1024, groups=2, group_size=512, num_fresh=8192, candidates=4, min_share=0.0005
    ),
)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_clusters(num: int, seed: int) -> Posteriors:
    side = torch.where(normal(num, 1, seed=seed) > 0, 1.5, -1.5)
    return Posteriors(side + 0.4 * normal(num, 3, seed=seed + 1), torch.full((num, 3), 0.2))


def made(settings: StageSettings) -> tuple[RatioSequence, FromBase, Course]:
    network = Standardised(vector_ratio(3, (32, 32), "silu", False, squares=True, bounded=True), 3)
    empty, draws = RatioSequence(StandardNormal(3), network), Draws(0)
    parts = Parts(two_clusters(3000, 0), two_clusters(800, 10), two_clusters(800, 20))
    return empty, FromBase(empty, settings.particles, draws, settings.gain_limit), Course(parts, settings, draws)


def with_pools(settings: StageSettings) -> StageSettings:
    return replace(settings, particles=replace(settings.particles, min_share=1.0))


@pytest.mark.parametrize("pools", [False, True])
def test_two_interruptions_in_a_row_change_nothing(pools: bool) -> None:
    settings = with_pools(SETTINGS) if pools else SETTINGS
    states: list[State] = []
    empty, source, course = made(settings)

    def keep(learned: Learned, trainer: Trainer) -> None:
        states.append(state_of(learned, source, trainer))

    whole = learn(Learned(empty), source, course, after_part=keep)
    assert whole.sequence.num_stages == 2
    assert whole.records[1].supply == ("moved pool" if pools else "weighted draws")
    state = states[2]
    for skipped in (3, 2):  # interrupted in the first stage, then again later
        empty, source, course = made(settings)
        learned, resume = restored(state, empty, source)
        states.clear()
        found = learn(learned, source, course, after_part=keep, resume=resume)
        assert all(torch.equal(w, found.sequence.weights[name]) for name, w in whole.sequence.weights.items())
        assert [one.nats for one in found.records] == [one.nats for one in whole.records]
        state = states[-skipped]


def test_a_pool_that_moves_is_not_memorised() -> None:
    """A network that could tell 1,024 standing points from others does not get to where they move."""
    settings = with_pools(replace(SETTINGS, trainer=replace(SETTINGS.trainer, min_updates=400, max_updates=600)))
    empty, source, course = made(settings)
    found = learn(Learned(empty), source, course)
    assert found.records[0].nats > 1.0
    assert abs(found.records[1].memorised.of_negatives) < 0.1
    assert all(one.memorised.of_target < 0.1 for one in found.records)
    assert found.records[1].nats > -3 * found.records[1].nats_error


def test_a_stage_that_says_nothing_is_the_last() -> None:
    empty, source, course = made(SETTINGS)
    same = Parts(*(Samples(normal(4000, 3, seed=seed)) for seed in range(3)))
    found = learn(Learned(empty), source, replace(course, parts=same))
    assert len(found.records) == 1
    assert found.records[0].nats < 0.02
    assert not found.verdict.goes_on


def test_a_ratio_whose_density_has_no_normaliser_is_left_out() -> None:
    empty, source, course = made(SETTINGS)
    accept = source.accept
    source.accept = lambda sequence: replace(accept(sequence), by=1e6, log_z=1e6)  # type: ignore[method-assign]
    learned = learn(Learned(empty), source, course)
    assert learned.sequence.num_stages == 0
    assert [(one.gain, one.nats, one.log_z) for one in learned.records] == [(0.0, 0.0, 0.0)]
    assert "too fast for its density to be normalised" in learned.verdict.reason


def test_decay_is_apart_from_the_gradient_and_spares_the_head() -> None:
    network = vector_ratio(3, (4,), "silu", True)
    adam = Adam(network, weight_decay=0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    adam.step(0.1)
    head, perceptron = network.parts
    assert all(bool((one == 1.0).all()) for one in head.parameters())
    for one in perceptron.parameters():
        torch.testing.assert_close(one, torch.full_like(one, 0.95))


def test_updates_in_bf16_lose_no_nats() -> None:
    """Weights stay in fp32, the held-out loss is that of fp32, and the stage says the same of the data."""
    found = {}
    for bf16 in (False, True):
        settings = replace(SETTINGS, max_stages=1, trainer=replace(SETTINGS.trainer, bf16=bf16))
        empty, source, course = made(settings)
        found[bf16] = learn(Learned(empty), source, course)
    plain, mixed = (found[bf16].records[0] for bf16 in (False, True))
    assert mixed.evidence.loss != plain.evidence.loss
    assert abs(mixed.nats - plain.nats) < 2 * plain.nats_error
    assert all(one.dtype == torch.float32 for one in found[True].sequence.weights.values())
