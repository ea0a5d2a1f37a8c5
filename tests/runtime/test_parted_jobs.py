"""Long jobs in parts: every part once, also where workers are killed, and the same command continues."""

import signal
from pathlib import Path

import pytest

from ebmscale.errors import ConfigError, DataError, Interrupted, WorkersLostError
from ebmscale.part_files import PartFiles, part_size
from ebmscale.runtime.part_job import Workers
from ebmscale.runtime.parts import MOST_LOSSES, run_parts
from ebmscale.storage import Storage
from tests.runtime.squares import Squares

HERE, TWO, ON_RAY = Workers(), Workers(2), Workers(2, "local")


@pytest.fixture
def files(tmp_path: Path) -> PartFiles:
    return PartFiles(Storage.at(tmp_path), ".txt")


def log(files: PartFiles) -> list[tuple[int, int]]:
    lines = (Path(files.storage.url) / "log").read_text().splitlines()
    return sorted((int(part), int(process)) for part, process in map(str.split, lines))


@pytest.mark.parametrize("workers", [HERE, TWO])
def test_every_part_is_done_once_and_a_second_call_does_none(files: PartFiles, workers: Workers) -> None:
    seen: list[tuple[int, int, str]] = []
    job = Squares(files, 9)
    run_parts(job, workers, lambda *args: seen.append(args))
    assert [files.read(part) for part in range(9)] == [str(part**2).encode() for part in range(9)]
    assert seen == [(num, 9, "parts") for num in range(10)]
    assert [part for part, _ in log(files)] == list(range(9))
    assert len({process for _, process in log(files)}) == max(workers.num, 1)
    run_parts(job, workers)
    assert len(log(files)) == 9
    files.storage.delete(files.name(4))
    run_parts(job, workers)
    assert [part for part, _ in log(files)] == sorted([*range(9), 4])


def test_a_killed_worker_loses_its_part_alone(files: PartFiles) -> None:
    run_parts(Squares(files, 6, kills=3), TWO)
    assert files.done() == set(range(6))
    assert [part for part, _ in log(files)] == list(range(6))
    assert (Path(files.storage.url) / "killed-3").exists()


def test_a_part_that_ends_every_worker_ends_the_job(files: PartFiles) -> None:
    with pytest.raises(WorkersLostError, match=f"Part 0 ended {MOST_LOSSES} workers.*exit code -9"):
        run_parts(Squares(files, 2, kills=0, always=True), TWO)


@pytest.mark.parametrize("workers", [HERE, TWO])
def test_an_error_of_a_part_is_the_jobs(files: PartFiles, workers: Workers) -> None:
    with pytest.raises(DataError, match="part 1 is damaged"):
        run_parts(Squares(files, 3, fails=1), workers)


def test_an_error_that_cannot_be_sent_is_told_in_words(files: PartFiles) -> None:
    with pytest.raises(RuntimeError, match="Unsendable: part 1 broke"):
        run_parts(Squares(files, 3, breaks=1), TWO)


@pytest.mark.parametrize("workers", [HERE, TWO])
def test_a_signal_ends_the_job_between_parts_and_the_same_call_continues(files: PartFiles, workers: Workers) -> None:
    def stop(done: int, total: int, unit: str) -> None:
        if done == 2:
            signal.raise_signal(signal.SIGTERM)

    job = Squares(files, 7)
    with pytest.raises(Interrupted, match=r"interrupted by SIGTERM; \d of 7 parts are done"):
        run_parts(job, workers, stop)
    assert 2 <= len(files.done()) < 7
    run_parts(job, workers)
    assert files.done() == set(range(7))


def test_a_folder_of_another_job_is_refused(files: PartFiles) -> None:
    files.begin({"seed": 1, "parts": (1, 2)})
    files.begin({"seed": 1, "parts": (1, 2)})
    with pytest.raises(ConfigError, match="its seed is 1, now it is 2"):
        files.begin({"seed": 2, "parts": (1, 2)})
    files.write(0, b"")
    files.remove()
    assert not Path(files.storage.url).exists()


@pytest.mark.parametrize(("num", "size"), [(0, 1), (1, 1), (1024, 1), (1025, 2), (10**9, 976_563)])
def test_the_number_of_parts_is_bounded(num: int, size: int) -> None:
    assert part_size(num) == size
    assert -(-num // size) <= 1024


@pytest.mark.ray
@pytest.mark.xdist_group("ray")
def test_ray_does_the_parts_and_replaces_a_killed_worker(files: PartFiles) -> None:
    pytest.importorskip("ray")
    run_parts(Squares(files, 6, kills=3), ON_RAY)
    assert files.done() == set(range(6))
    assert [part for part, _ in log(files)] == list(range(6))
    with pytest.raises(DataError, match="part 7 is damaged"):
        run_parts(Squares(files, 8, fails=7), ON_RAY)
