"""Ports for servers that another process opens a little later."""

import contextlib
import random
import socket


def free_port() -> int:
    """A port of loopback that nobody listens on, below those that outgoing connections take in the meantime."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(20_000, 32_768)))
            return probe.getsockname()[1]
