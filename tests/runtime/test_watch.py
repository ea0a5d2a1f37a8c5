import threading
import time
from types import SimpleNamespace

import pytest

from ebmscale.config import LimitsBlock
from ebmscale.runtime import watch as module
from ebmscale.runtime.board import SETUP, Board
from ebmscale.runtime.watch import HUNG_EXIT_CODE, LineWriter, Watch
from ebmscale.stop import StopSignal
from ebmscale.training.summary import Activity
from tests.conftest import PATIENCE_S


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.05)


@pytest.fixture
def board():
    return Board(max_failures=3)


@pytest.fixture
def make_watch(board):
    watches = []

    def make(**limits):
        ended = threading.Event()
        stop = StopSignal()
        codes = []

        def end(code):
            codes.append(code)
            ended.set()

        watch = Watch(board, "a", 0, 1, "here", LimitsBlock(**limits), stop, end=end)
        watches.append(watch)
        return SimpleNamespace(watch=watch, stop=stop, ended=ended, codes=codes)

    yield make
    for watch in watches:
        watch.close()


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def activity(samples_seen=0, part=None):
    return lambda: Activity(samples_seen, part)


def test_what_is_said_arrives_at_the_latest_on_closing(board, make_watch):
    one = make_watch()
    one.watch.start()
    LineWriter(one.watch.say, "[rank 0] ").write("first\nsecond\nhalf")
    one.watch.close()
    assert board.read().lines == ["[rank 0] first", "[rank 0] second"]


def test_what_is_said_does_not_wait_for_the_next_beat(board, make_watch, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 10 * PATIENCE_S)
    one = make_watch()
    one.watch.start()
    one.watch.say("first update")
    wait_until(lambda: board.read().lines == ["first update"])


def test_a_request_reaches_the_stop_signal(board, make_watch):
    one = make_watch()
    one.watch.start()
    board.request("SIGTERM")
    wait_until(lambda: one.stop.name == "SIGTERM")


def hang_here(release):
    release.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("part", "limit"),
    [(SETUP, "setup_s"), ("posterior", "chain_s"), ("prior", "chain_s"), ("ratio", "update_s"), ("data", "update_s"),
     ("checkpoint", "checkpoint_s")],
)  # fmt: skip
def test_each_part_has_its_limit_and_the_stack_is_shown(board, make_watch, part, limit):
    others = dict.fromkeys(LimitsBlock.model_fields, 1000.0)
    one = make_watch(**others | {limit: 0.2})
    release = threading.Event()
    thread = threading.Thread(target=hang_here, args=(release,))
    thread.start()
    if part != SETUP:
        one.watch.begin(activity(640, (part, time.monotonic())))
    one.watch.start()
    assert one.ended.wait(PATIENCE_S)
    release.set()
    thread.join()
    assert one.codes[0] == HUNG_EXIT_CODE
    text = "\n".join(board.read().lines)
    assert f"s in {part} after" in text
    assert "in hang_here" in text


def test_many_short_pieces_are_no_hang(make_watch, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = make_watch(update_s=0.5, chain_s=0.5)
    run = SimpleNamespace(samples_seen=0, part=None)
    one.watch.begin(lambda: Activity(run.samples_seen, run.part))
    for _ in range(20):  # as the watch's thread does, at any point of a piece
        run.part = ("generator", now[0])
        now[0] += 0.05
        one.watch._beat()
        one.watch._check()
        run.part = None
        run.samples_seen += 32
        one.watch._beat()
        one.watch._check()
    assert not one.codes
    run.part = ("generator", now[0])
    now[0] += 0.6
    one.watch._beat()
    one.watch._check()
    assert one.codes == [HUNG_EXIT_CODE]


def test_no_limit_is_no_limit(make_watch):
    one = make_watch(setup_s=0.0)
    one.watch.start()
    assert not one.ended.wait(0.5)


def test_batches_are_reported_where_workers_were_lost_before_and_for_a_while_after(board, make_watch, monkeypatch):
    one = make_watch()
    one.watch.begin(activity())
    one.watch.start()
    wait_until(lambda: board._group.members)
    one.watch.batch(0, ["a"])
    assert board._group.members[0].batch is None
    board._report_batches_until = 64
    wait_until(lambda: one.watch._report_batches_until == 64)
    one.watch.batch(64, ["b", "c"])
    assert board._group.members[0].batch == (64, ("b", "c"))
    one.watch.batch(96, ["d"])  # where they were lost is known to about a second
    assert board._group.members[0].batch == (96, ("d",))
    monkeypatch.setattr(module, "REPORT_BATCHES_S", 0.0)
    one.watch.batch(128, ["e"])
    assert board._group.members[0].batch is None  # so that no loss from here on is taken for one at 96


def test_a_board_that_fails_does_not_disturb_training(make_watch, monkeypatch, board):
    one = make_watch()
    beats = []

    def fail(beat):
        beats.append(beat)
        raise ConnectionError

    monkeypatch.setattr(board, "beat", fail)
    one.watch.start()
    one.watch.batch(-1, [])
    wait_until(lambda: len(beats) > 2)
    assert not one.codes


def test_a_worker_without_a_driver_saves_and_leaves(board, make_watch, monkeypatch):
    monkeypatch.setattr(module, "ORPHANED_S", 0.2)
    one = make_watch()
    one.watch.start()
    wait_until(lambda: board.read().num_workers == 1)
    assert one.stop.name is None

    def gone(beat):
        raise ConnectionError

    monkeypatch.setattr(board, "beat", gone)
    wait_until(lambda: one.stop.name is not None)
    assert one.stop.name == "the loss of its driver"
