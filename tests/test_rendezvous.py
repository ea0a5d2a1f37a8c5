"""What a launcher's variables mean, those that it left behind, and the wait for ranks that may never come."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from ebmscale import rendezvous
from ebmscale.errors import ConfigError, WorkersLostError
from ebmscale.rendezvous import RankAndSize, join, local_rank, rank_and_size

WHERE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
DIGIT = "\N{ARABIC-INDIC DIGIT THREE}"


def test_a_place_is_what_torchrun_says() -> None:
    assert rank_and_size({}) == RankAndSize(0, 1)
    assert rank_and_size({"RANK": "0", "WORLD_SIZE": "1"}) == RankAndSize(0, 1)
    assert rank_and_size(WHERE | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == RankAndSize(3, 4)
    assert rank_and_size(WHERE) == RankAndSize(0, 1)
    assert local_rank({"LOCAL_RANK": "2"}) == 2


@pytest.mark.parametrize(
    ("left_over", "named"),
    [
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"RANK": ""}, "RANK=''"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one'"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1'"),
        ({"RANK": "0", "WORLD_SIZE": DIGIT}, f"WORLD_SIZE='{DIGIT}'"),
        ({"RANK": "0", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE='999"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 and WORLD_SIZE=0"),
        ({"RANK": "2", "WORLD_SIZE": "2"} | WHERE, "RANK=2 and WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"} | WHERE | {"MASTER_PORT": "http"}, "MASTER_PORT='http'"),
        ({"RANK": "0", "WORLD_SIZE": "2"} | WHERE | {"MASTER_PORT": "65536"}, "MASTER_PORT=65536"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK=''"),
    ],
)
def test_left_over_variables_are_named_with_the_way_out(left_over: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match="unset RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT") as caught:
        rank_and_size(left_over)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 400


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize(("rank", "missing"), [(0, "2 of 3 ranks"), (1, "the first rank did not come .* refused")])
def test_the_wait_for_others_has_an_end(monkeypatch: pytest.MonkeyPatch, rank: int, missing: str) -> None:
    monkeypatch.setattr(rendezvous, "JOIN_S", 0.2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())
    with pytest.raises(WorkersLostError, match=missing):
        join(RankAndSize(rank, 3), "gloo")


def test_a_port_that_is_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="choose another MASTER_PORT"):
            join(RankAndSize(0, 2), "gloo")


ALONE = """
from ebmscale import rendezvous
from ebmscale.cli import main
rendezvous.SAY_AFTER_S = 0.0
main()
"""


def test_the_wait_is_said_and_a_signal_ends_it() -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    process = subprocess.Popen(
        [sys.executable, "-c", ALONE, "score", "run", "data", "--out", "x.csv", "--device", "cpu"],
        env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.readline()
    assert "rank 0 waits for 1 of 2 ranks at 127.0.0.1" in said
    assert "if no others were started, stop this, and unset RANK" in said
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].splitlines()[-1] == "stopped: interrupted by SIGINT"
    assert process.returncode == 130
