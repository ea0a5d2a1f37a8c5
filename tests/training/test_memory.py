"""Posterior chains that go on where they ended when their image came last."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ebmscale
from ebmscale.config import RunConfig, parse_config
from ebmscale.errors import ConfigError
from ebmscale.model import posterior as tasks
from ebmscale.model.pieces import assemble, whole_spans
from ebmscale.model.run_folder import run_storage
from ebmscale.stop import StopSignal
from ebmscale.training import inference
from ebmscale.training.checkpoint import CheckpointStore
from ebmscale.training.loop import train_batch
from ebmscale.training.memory import LatentMemory
from ebmscale.training.opening import open_run
from ebmscale.world import World
from tests.conftest import PATIENCE_S
from tests.training.test_resume import changed
from tests.training.test_two_ranks import start_ranks

ALONE = World.alone()
MEMORY = {"start": "memory", "num_steps": 2, "first_steps": 4}


def test_what_was_kept_is_recalled_and_what_has_no_room_is_not() -> None:
    memory = LatentMemory(num_samples=10, dim=3, max_bytes=6 * 3 * 4, world=ALONE)
    z = torch.randn(4, 3)
    memory.keep(torch.tensor([0, 5, 6, 9]), z)
    known, recalled = memory.recall(torch.tensor([9, 6, 5, 1, 0]))
    assert known.tolist() == [False, False, True, False, True]
    assert torch.equal(recalled[known], z[[1, 0]])
    assert memory.shapes() == {"z": torch.Size((6, 3)), "known": torch.Size((6,))}


@pytest.mark.parametrize(("size", "num_samples"), [(1, 1), (2, 7), (3, 5), (4, 2)])
def test_the_ranks_shares_make_the_whole(size: int, num_samples: int) -> None:
    memory = LatentMemory(num_samples, 3, 1 << 20, ALONE)
    memory.keep(torch.arange(0, num_samples, 2), torch.randn(-(-num_samples // 2), 3))
    worlds = [World(rank, size, ALONE.device) for rank in range(size)]
    pieces = []
    for world in worlds:
        memory._world = world
        pieces += memory.share()
    other = LatentMemory(num_samples, 3, 1 << 20, ALONE)
    other.restore(assemble(other.wanted(), pieces))
    assert torch.equal(other.z, memory.z)
    assert torch.equal(other.known, memory.known)


def test_a_chain_goes_on_where_it_ended_and_others_start_anew(tiny: RunConfig) -> None:
    """With steps of almost no size, chains end where they start."""
    config = changed(tiny, posterior={**MEMORY, "step_size": 1e-6}, train={"max_samples": 1600})
    run = open_run(config, ALONE, StopSignal())
    assert run.memory is not None
    num_known = []
    for batch in run.batches():
        known, before = run.memory.recall(batch.samples)
        train_batch(run, batch)
        _, after = run.memory.recall(batch.samples)
        assert torch.allclose(before[known], after[known], atol=1e-3)
        num_known.append(int(known.sum()))
        run.samples_seen = batch.end
        if batch.end >= 1600:
            break
    run.close()
    assert sum(num_known[: run.num_samples // 32]) == 0  # the first epoch
    assert 0 < num_known[run.num_samples // 32] < 32  # in one batch some chains go on, others start
    assert num_known[-1] == 32


def test_remembered_images_take_fewer_steps(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int, int]] = []

    def counted(*arguments, **options):
        lengths.append((len(arguments[3]), arguments[6].num_steps))
        return tasks.sample_posterior(*arguments, **options)

    monkeypatch.setattr(inference, "sample_posterior", counted)
    run = open_run(changed(tiny, posterior=MEMORY), ALONE, StopSignal())
    assert run.memory is not None
    batch = next(run.batches())
    train_batch(run, batch)
    train_batch(run, batch)
    run.memory.known[batch.samples[:5]] = False
    train_batch(run, batch)
    run.close()
    assert lengths == [(32, 4), (32, 2), (27, 2), (5, 4)]


def test_a_bad_update_is_not_remembered(tiny: RunConfig) -> None:
    run = open_run(changed(tiny, posterior=MEMORY), ALONE, StopSignal())
    assert run.memory is not None
    batch = next(run.batches())
    bad = replace(batch, images=torch.full_like(batch.images, torch.nan, dtype=torch.float32))
    assert train_batch(run, bad).bad
    run.close()
    assert not run.memory.known.any()


def test_two_ranks_remember_what_one_does(tiny_text: str, tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        text = tiny_text.replace("posterior: {num_steps: 3", "posterior: {start: memory, first_steps: 3, num_steps: 1")
        file = tmp_path / f"of{size}.yaml"
        file.write_text(
            text.replace("name: tiny", f"name: of{size}").replace("max_samples: 3200", "max_samples: 1600")
            + "engine: plain\n"
        )
        for rank in start_ranks("-m", "ebmscale", "train", str(file), size=size):
            _, errors = rank.communicate(timeout=PATIENCE_S)
            assert rank.returncode == 0, errors
        storage = run_storage(parse_config(file.read_text()))
        store = CheckpointStore(storage)
        saved = store.open(store.finished()[0])
        values = saved.read("memory", whole_spans(saved.shapes("memory")))
        found.append({span.name: one for span, one in values.items()})
        assert ebmscale.load(storage.url).infer(torch.zeros(2, 1, 8, 8))[1].drift.shape == (3,)
    assert found[0]["known"].all()
    assert torch.equal(found[1]["known"], found[0]["known"])
    torch.testing.assert_close(found[1]["z"], found[0]["z"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("block", [{"start": "memory"}, {"first_steps": 4}, {**MEMORY, "num_steps": 0}])
def test_steps_that_make_no_sense_are_refused(tiny: RunConfig, block: dict[str, object]) -> None:
    text = tiny.dump()
    assert parse_config(text)
    changes = ", ".join(f"{key}: {value}" for key, value in block.items())
    head, _, tail = text.partition("posterior:\n")
    _, _, tail = tail.partition("prior:\n")
    with pytest.raises(ConfigError, match=r"first_steps|num_steps"):
        parse_config(f"{head}posterior: {{{changes}}}\nprior:\n{tail}")
