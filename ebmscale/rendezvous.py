"""Where the ranks of a run meet: how the environment describes them, and how each waits for the others.

torchrun and other launchers describe a process by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Containers and shells
are often left with some of them, so each is checked before it is used.
"""

import datetime
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.distributed as dist

from ebmscale.errors import ConfigError, WorkersLostError
from ebmscale.faults import describe

log = logging.getLogger(__name__)

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
JOIN_S = 600.0  # longest wait for the other ranks
SAY_AFTER_S, SAY_EVERY_S = 3.0, 60.0
COLLECTIVE_S = 600.0  # longest collective operation
_CONNECT_S = 5.0  # for one attempt to reach the first rank
_LONGEST_PAUSE_S = 1.0
_PRESENT = "present"
_ADVICE = f"unset {', '.join(RANK_VARIABLES)} to work with one process, or start all ranks by torchrun, which sets them"


class RankAndSize(NamedTuple):
    """Which rank this process is, of how many."""

    rank: int
    size: int


def rank_and_size(environment: Mapping[str, str]) -> RankAndSize:
    """This process's place, by RANK and WORLD_SIZE; alone if neither is set.

    Raises:
        ConfigError: the variables are empty, no numbers, incomplete, or contradict each other.
    """
    local_rank(environment)
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return RankAndSize(0, 1)
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank >= size:
        raise ConfigError(
            f"The environment has RANK={rank} and WORLD_SIZE={size}, but ranks are below WORLD_SIZE: {_ADVICE}."
        )
    if size > 1:
        _address(environment)
    return RankAndSize(rank, size)


def local_rank(environment: Mapping[str, str]) -> int:
    """LOCAL_RANK, 0 if it is not set.

    Raises:
        ConfigError: it is empty or no number.
    """
    return _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else 0


def join(place: RankAndSize, backend: str) -> None:
    """Waits until all ranks are there, and joins them in torch's process group.

    A signal ends the wait within seconds.

    Raises:
        ConfigError: the first rank cannot listen at MASTER_PORT.
        WorkersLostError: some ranks did not join within `JOIN_S` seconds, or were lost at once.
    """
    store = _meet(place, *_address(os.environ))
    timeout = datetime.timedelta(seconds=COLLECTIVE_S)
    try:
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=timeout)
    except RuntimeError as error:
        raise WorkersLostError(
            f"The {place.size} ranks met and then lost each other ({describe(error)[:200]}); check that all "
            "of them run and reach each other, and start them again."
        ) from error


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None:
        raise ConfigError(f"The environment describes a rank of several, but {name} is not set: {_ADVICE}.")
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ConfigError(f"The environment has {name}={text[:40]!r}, which is not a number: {_ADVICE}.")
    return int(text)


def _address(environment: Mapping[str, str]) -> tuple[str, int]:
    port = _number(environment, "MASTER_PORT")
    if not 0 < port < 2**16:
        raise ConfigError(f"The environment has MASTER_PORT={port}, which is not a port: {_ADVICE}.")
    host = environment.get("MASTER_ADDR", "")
    if not host:
        raise ConfigError(f"The environment describes a rank of several, but MASTER_ADDR is not set: {_ADVICE}.")
    return host, port


def _meet(place: RankAndSize, host: str, port: int) -> Any:
    """The store that all ranks share, once all have joined it."""
    of_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_host = place.rank == 0 and not of_launcher
    begin, pause_s, say_at = time.monotonic(), 0.02, SAY_AFTER_S
    store, problem, num_present = None, "", 0
    while True:
        try:
            if store is None:
                store = _open_store(place, host, port, is_host)
                store.add(_PRESENT, 1)
            num_present, problem = store.add(_PRESENT, 0), ""
        except (OSError, RuntimeError) as error:  # not started yet, or lost again
            store, problem = None, f" ({describe(error)})"
        if store is not None and num_present >= place.size:
            break
        waited = time.monotonic() - begin
        missing = "the first rank" if store is None else f"{place.size - num_present} of {place.size} ranks"
        if waited > JOIN_S:
            raise WorkersLostError(
                f"This is rank {place.rank}, and {missing} did not come to {host}:{port} within {JOIN_S:.0f} s"
                f"{problem}; start them, or {_ADVICE}."
            )
        if waited > say_at:
            say_at = waited + SAY_EVERY_S
            log.info(
                "rank %d waits for %s at %s:%d, for at most %.0f s%s; if no others were started, stop this, and %s",
                place.rank, missing, host, port, JOIN_S, problem, _ADVICE,
            )  # fmt: skip
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    if say_at > SAY_AFTER_S:
        log.info("all %d ranks are there", place.size)
    return store


def _open_store(place: RankAndSize, host: str, port: int, is_host: bool) -> Any:
    """The store at an address; OSError or RuntimeError if it is not there yet."""
    if is_host:
        socket.getaddrinfo(host, port)
    else:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()  # unlike torch's, a signal ends it
    limit = datetime.timedelta(seconds=_CONNECT_S)
    try:
        store = dist.TCPStore(host, port, place.size, is_host, limit, wait_for_workers=False)  # type: ignore[attr-defined]
    except RuntimeError as error:
        if is_host:
            raise ConfigError(
                f"Rank 0 cannot listen at {host}:{port} ({describe(error)[:200]}); choose another MASTER_PORT for all "
                f"ranks, or {_ADVICE}."
            ) from error
        raise
    store.set_timeout(datetime.timedelta(seconds=COLLECTIVE_S))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"ebmscale-{attempt}", store)  # type: ignore[attr-defined]
