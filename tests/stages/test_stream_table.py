"""Latents kept by stream: the union over ranks is the same for every number of ranks.

Ranks are `World` values without a process group; what a collective call would bring is put together by hand.
"""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ebmscale.model.pieces import assemble, whole_spans
from ebmscale.stages.stream_table import StreamTable
from ebmscale.world import World, owned_rows

CPU = torch.device("cpu")
STREAMS, SLOTS, DIM = 6, 4, 3


@dataclass(frozen=True)
class PaperWorld(World):
    """A rank whose peers stand in a list."""

    tables: list[StreamTable] = field(default_factory=list)

    def any(self, flag: bool) -> bool:
        return any(bool((table.written == 0).any()) for table in self.tables)


def make_ranks(size: int) -> list[StreamTable]:
    tables: list[StreamTable] = []
    for rank in range(size):
        tables.append(StreamTable(STREAMS, SLOTS, DIM, PaperWorld(rank, size, CPU, tables)))
    return tables


def batch(num_rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, DIM, generator=generator), torch.arange(num_rows) % STREAMS


def add(tables: list[StreamTable], z: Tensor, streams: Tensor) -> None:
    for rank, table in enumerate(tables):
        mine = streams % len(tables) == rank
        table.add(z[mine], streams[mine])


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@given(num_rows=st.integers(0, 100), num_streams=st.integers(1, 12), size=st.integers(1, 8))
def test_every_row_is_owned_once_and_by_the_owner_of_its_stream(num_rows: int, num_streams: int, size: int) -> None:
    owned = [owned_rows(num_rows, num_streams, World(rank, size, CPU)) for rank in range(size)]
    assert torch.cat(owned).sort().values.tolist() == list(range(num_rows))
    for rank, rows in enumerate(owned):
        assert bool((rows % num_streams % size == rank).all())


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5), size=st.integers(1, STREAMS))
def test_the_union_over_ranks_does_not_depend_on_their_number(sizes: list[int], size: int) -> None:
    one, many = make_ranks(1), make_ranks(size)
    for seed, num_rows in enumerate(sizes):
        add(one, *batch(num_rows, seed))
        add(many, *batch(num_rows, seed))
    assert equal(whole(many), whole(one))


@given(size=st.integers(1, STREAMS), num_rows=st.integers(1, 30))
def test_draws_do_not_depend_on_the_number_of_ranks(size: int, num_rows: int) -> None:
    one, many = make_ranks(1), make_ranks(size)
    for tables in (one, many):
        add(tables, *batch(2 * STREAMS + 3, seed=0))
    uniform = torch.rand(num_rows, 5, generator=torch.Generator().manual_seed(1))
    streams = torch.arange(num_rows) % STREAMS
    whole = one[0].draw(uniform, streams)
    for rank, table in enumerate(many):
        mine = streams % size == rank
        assert torch.equal(table.draw(uniform[mine], streams[mine]), whole[mine])


@given(streams=st.lists(st.integers(0, STREAMS - 1), max_size=60))
def test_every_stream_keeps_its_last_latents_as_a_ring(streams: list[int]) -> None:
    """Against a list for every stream; written in batches of 13, within which a ring may come round twice."""
    (table,) = make_ranks(1)
    z = torch.randn(len(streams), DIM, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(STREAMS, SLOTS, DIM)
    counts = [0] * STREAMS
    for start in range(0, len(streams), 13):
        part = slice(start, start + 13)
        table.add(z[part], torch.tensor(streams[part], dtype=torch.int64))
        for row, stream in zip(z[part], streams[part], strict=True):
            expected[stream, counts[stream] % SLOTS] = row
            counts[stream] += 1
    assert torch.equal(table.z, expected)
    assert table.written.tolist() == counts


def whole(tables: list[StreamTable]) -> dict[str, torch.Tensor]:
    """The run's whole table, from what every rank would save."""
    spans = whole_spans(tables[0].shapes())
    found = assemble(spans, [piece for table in tables for piece in table.share()])
    return {span.name: found[span].view(tables[0].shapes()[span.name]) for span in spans}


def restore(table: StreamTable, saved: list[StreamTable]) -> None:
    table.restore(assemble(table.wanted(), [piece for other in saved for piece in other.share()]))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3), (3, 2), (6, 6)])
def test_a_state_goes_on_with_another_number_of_ranks(before: int, after: int) -> None:
    old, new, reference = make_ranks(before), make_ranks(after), make_ranks(1)
    for tables in (old, reference):
        add(tables, *batch(15, seed=0))
    for table in new:
        restore(table, old)
    assert equal(whole(new), whole(reference))
    for tables in (new, reference):  # the ring goes on where it was
        add(tables, *batch(17, seed=1))
    assert equal(whole(new), whole(reference))


def test_a_loaded_state_is_a_copy() -> None:
    (table,), (other,) = make_ranks(1), make_ranks(1)
    add([table], *batch(12, seed=0))
    before = {key: value.clone() for key, value in whole([table]).items()}
    restore(other, [table])
    add([other], *batch(12, seed=1))
    assert equal(before, whole([table]))


def test_filling_replaces_every_slot_in_the_order_of_rows() -> None:
    for table in make_ranks(4):
        new = torch.randn(len(table.row_streams), DIM)
        table.fill(new)
        assert torch.equal(table.rows, new)
        assert bool((table.written == SLOTS).all())
        for i, stream in enumerate(table.row_streams.tolist()):
            assert stream % 4 == table.world.rank
            assert torch.equal(table.z[stream // 4, i % SLOTS], new[i])


def test_a_table_is_ready_once_every_stream_on_every_rank_holds_a_latent() -> None:
    tables = make_ranks(2)
    add(tables, *batch(STREAMS - 1, seed=0))
    assert not any(table.is_ready() for table in tables)
    add(tables, torch.zeros(1, DIM), torch.tensor([STREAMS - 1]))
    assert all(table.is_ready() for table in tables)


def test_draws_come_from_written_slots_of_the_own_stream_evenly() -> None:
    (table,) = make_ranks(1)
    table.add(torch.tensor([[1.0], [2.0], [3.0], [10.0]]).expand(4, DIM), torch.tensor([0, 0, 0, 1]))
    uniform = torch.rand(2, 30_000, generator=torch.Generator().manual_seed(0))
    drawn = table.draw(uniform, torch.tensor([0, 1]))[:, :, 0]
    shares = torch.bincount(drawn[0].long(), minlength=4) / 30_000
    torch.testing.assert_close(shares, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), rtol=0, atol=0.015)
    assert bool((drawn[1] == 10).all())


@pytest.mark.parametrize("num_rows", range(1, 2 * SLOTS))
def test_the_largest_uniform_number_draws_the_last_written_slot(num_rows: int) -> None:
    (table,) = make_ranks(1)
    table.add(torch.ones(num_rows, DIM), torch.zeros(num_rows, dtype=torch.int64))
    drawn = table.draw(torch.full((1, 1), 1 - 2**-24), torch.tensor([0]))
    assert torch.equal(drawn[0, 0], table.z[0, min(num_rows, SLOTS) - 1])
    assert bool((drawn == 1).all())
