import pytest

from ebmscale.runtime.board import SETUP, SILENT_S, Beat, Board, Failure
from ebmscale.runtime.lost_workers import REPEATS

DIED = Failure("died", "")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board(clock):
    return Board(max_failures=3, clock=clock)


def beat(rank=0, samples_seen=640, part="generator", attempt="a", start=320, **other):
    return Beat(attempt, rank, 2, f"host{rank} (process 1)", start, samples_seen, part, **other)


def test_lines_are_read_once_and_in_order(board):
    board.beat(beat(lines=("one", "two")))
    board.beat(beat(1, lines=("three",)))
    assert board.read().lines == ["one", "two", "three"]
    assert board.read().lines == []


def test_workers_may_start_when_every_check_is_done(board):
    assert not board.may_start()
    board.allow_start()
    assert board.may_start()


def test_a_stop_reaches_every_worker_and_a_person_goes_first(board):
    assert board.beat(beat()).stop is None
    board.request("resize")
    board.request("SIGTERM")
    board.request("resize")
    assert board.beat(beat(1)).stop == "SIGTERM"
    board.end_group()
    assert board.beat(beat(attempt="b")).stop == "SIGTERM"


def test_a_resize_is_over_with_its_workers(board):
    board.beat(beat())
    board.beat(beat(1))
    board.request("resize")
    assert not board.all_left()
    board.leave("a", 0)
    board.leave("a", 1)
    assert board.all_left()
    board.end_group()
    assert board.beat(beat(attempt="b")).stop is None


def test_a_notice_of_preemption_makes_all_save(board):
    board.beat(beat(1))
    assert board.beat(beat(preempted=True)).stop == "preemption"
    assert board.beat(beat(1)).stop == "preemption"
    assert board.restart("preemption") is None
    assert board.beat(beat(attempt="b")).stop is None


def test_preempted_workers_use_up_nothing(board):
    for attempt in "abcdefgh":
        board.beat(beat(attempt=attempt))
        assert board.lost({0: Failure("preempted", "")}) is None


def test_the_same_failure_told_twice_counts_once(board):
    board.beat(beat())
    for _ in range(10):
        assert board.lost({0: DIED}) is None


def test_losses_end_the_run_when_there_were_too_many(board):
    for attempt in "abc":
        board.beat(beat(attempt=attempt))
        assert board.lost({0: DIED}) is None
    board.beat(beat(attempt="d"))
    assert "4 times without a checkpoint between" in board.lost({0: DIED})


def test_after_a_loss_batches_are_reported_until_it_is_passed(board):
    assert board.beat(beat()).report_batches_until < 0
    board.beat(beat(1, samples_seen=704))
    board.lost({1: DIED})
    assert board.beat(beat(attempt="b")).report_batches_until == 704


def test_a_batch_that_kills_again_and_again_is_named(clock):
    board = Board(max_failures=100, clock=clock)
    sentence = None
    for number in range(REPEATS + 1):
        assert sentence is None
        attempt = f"try {number}"
        for rank in (0, 1):
            board.beat(beat(rank, samples_seen=320, attempt=attempt))
            board.batch(attempt, rank, 960, (f"key of rank {rank}",))
        if number == 0:  # its batches were not reported yet
            board._group.members[1].batch = None
        sentence = board.lost({0: Failure("raised", "RuntimeError: Connection closed by peer"), 1: DIED})
    assert "after 960 samples" in sentence
    assert "key of rank 1" in sentence
    assert "key of rank 0" not in sentence


def test_a_worker_that_no_longer_reports_batches_is_not_said_to_have_died_in_one(clock):
    board = Board(max_failures=100, clock=clock)
    for number in range(2 * REPEATS):
        board.beat(beat(samples_seen=1280, attempt=f"try {number}"))
        board.batch(f"try {number}", 0, 960, ("key",))
        board.batch(f"try {number}", 0, 992, None)
        assert board.lost({0: DIED}) is None


def test_the_one_behind_hangs_and_the_others_wait(board):
    board.beat(beat(0, samples_seen=640, part="ratio"))
    board.beat(beat(1, samples_seen=640, part="posterior"))
    assert not board.overdue("a", 0, 60.0, "stack of 0")
    assert board.overdue("a", 1, 60.0, "stack of 1")
    text = "\n".join(board.read().lines)
    assert "rank 1 on host1" in text
    assert "60 s in posterior after 640 samples" in text
    assert "stack of 1" in text
    assert "stack of 0" not in text


@pytest.mark.parametrize(
    ("behind", "ahead"),
    [
        ({"samples_seen": 608, "part": "ratio"}, {"samples_seen": 640, "part": "data"}),
        ({"samples_seen": 640, "part": "checkpoint"}, {"samples_seen": 640, "part": "data"}),
        ({"samples_seen": 640, "part": "evidence"}, {"samples_seen": 640, "part": "checkpoint"}),
        ({"samples_seen": 0, "part": SETUP, "start": None}, {"samples_seen": 0, "part": "data", "start": 0}),
    ],
)
def test_who_is_behind(board, behind, ahead):
    board.beat(beat(0, **ahead))
    board.beat(beat(1, **behind))
    assert not board.overdue("a", 0, 60.0, "")
    assert board.overdue("a", 1, 60.0, "")


def test_a_worker_that_stopped_answering_is_named_by_one_that_waits(board, clock):
    board.beat(beat(0))
    board.beat(beat(1))
    clock.now += SILENT_S + 1
    board.beat(beat(0))
    assert board.overdue("a", 0, 60.0, "")
    assert "rank 1 on host1 (process 1) has stopped answering; rank 0 waits" in board.read().lines[-1]


def test_late_words_of_workers_that_are_gone_change_nothing(board):
    board.beat(beat(1))
    board.lost({1: DIED})
    board.beat(beat(0, attempt="b"))
    board.beat(beat(1, attempt="a", lines=("last words",)))
    assert board.read().num_workers == 1
    assert not board.overdue("a", 1, 60.0, "")


def test_failures_before_any_beat_are_counted(board):
    assert board.lost({0: DIED}) is None
    assert any("rank 0 died" in line for line in board.read().lines)
    for _ in range(2):
        assert board.restart("RuntimeError: no port") is None
    assert board.restart("RuntimeError: no port") is not None


def test_attempts_are_numbered_as_they_come_and_share_a_name(board):
    token, number = board.join("first")
    assert (token, number + 1) == board.join("second")
    assert (token, number) == board.join("first")
    assert Board(max_failures=3).join("first")[0] != token
