"""Randomness as a function of its place: purposes differ, ranks do not matter, the global generator is untouched."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.seeds import StreamNoise, derive, permutation, torch_generator


def test_every_argument_of_a_seed_matters() -> None:
    places = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    assert len({derive(*place) for place in places}) == len(places)
    assert derive(0, "a", 11) != derive(0, "a", 1, 1)
    assert all(0 <= derive(*place) < 2**63 for place in places)


def test_a_seed_is_what_it_was_when_the_first_runs_were_made() -> None:
    """BLAKE2b of `3:posterior:5:7`: a change here silently changes every run that is resumed."""
    assert derive(3, "posterior", 5, 7) == 4753401685118297191


def test_generators_of_one_place_agree() -> None:
    first, second = (torch.randn(5, generator=torch_generator(0, "a", 1, 2)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_permutation_is_one_and_depends_on_its_place() -> None:
    first, second = permutation(1000, 0, "order", 0), permutation(1000, 0, "order", 1)
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, permutation(1000, 0, "order", 0))


def draw_all(noise: StreamNoise) -> torch.Tensor:
    """Several calls one after another, as (B, 13)."""
    return torch.cat([noise.normal(2, 3).flatten(1), noise.uniform(3), noise.normal(4)], dim=1)


@given(
    num_rows=st.integers(1, 40),
    num_streams=st.integers(1, 12),
    size=st.integers(1, 6),
    position=st.integers(0, 2**40),
)
def test_rows_do_not_depend_on_how_they_are_spread_over_ranks(
    num_rows: int, num_streams: int, size: int, position: int
) -> None:
    streams = torch.arange(num_rows) % num_streams
    whole = draw_all(StreamNoise(1, "chain", position, streams))
    for rank in range(size):
        mine = (streams % size == rank).nonzero().squeeze(1)
        if len(mine):
            assert torch.equal(draw_all(StreamNoise(1, "chain", position, streams[mine])), whole[mine])


def test_rows_streams_seeds_purposes_and_positions_differ() -> None:
    streams = torch.tensor([0, 0, 1, 1])
    rows = [
        row
        for seed, purpose, position in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 128)]
        for row in StreamNoise(seed, purpose, position, streams).normal(3)
    ]
    assert len({tuple(row.tolist()) for row in rows}) == 16


def test_calls_go_on_and_do_not_repeat() -> None:
    noise = StreamNoise(0, "a", 0, [0, 1])
    assert not torch.equal(noise.normal(3), noise.normal(3))


def test_draws_have_the_law_they_are_named_after() -> None:
    noise = StreamNoise(0, "a", 0, torch.arange(1000) % 8)
    normal, uniform = noise.normal(1000), noise.uniform(1000)
    assert float(normal.mean()) == pytest.approx(0, abs=0.005)
    assert float(normal.var()) == pytest.approx(1, abs=0.007)
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.0015)
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert normal.dtype == uniform.dtype == torch.float32


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    before = draw_all(StreamNoise(0, "a", 0, [0, 1, 2]))
    permutation(10, 0, "order")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert torch.equal(draw_all(StreamNoise(0, "a", 0, [0, 1, 2])), before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_a_gpu_draws_the_same_rows_however_they_are_shared_out() -> None:
    streams = torch.arange(40) * 7 % 5
    whole = draw_all(StreamNoise(3, "x", 64, streams, "cuda"))
    assert whole.is_cuda
    for size in (2, 3):
        for rank in range(size):
            rows = (streams % size == rank).nonzero().flatten()
            assert torch.equal(draw_all(StreamNoise(3, "x", 64, streams[rows], "cuda")), whole[rows.cuda()])
    assert abs(float(whole.mean())) < 0.2
