"""Joins a running Ray cluster, or starts Ray on this machine for the duration of a run."""

import importlib
import logging
import math
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ebmscale.config import RayBlock
from ebmscale.errors import ConfigError
from ebmscale.machine import num_cpus
from ebmscale.runtime.ray_access import answer_refusal, on_loopback, private_ray
from ebmscale.runtime.scheduling import children_use_batch_scheduling
from ebmscale.stop import signals_kept

ANSWER_S = 10.0  # limit for a cluster's port to answer
INSTALL = "pip install 'ebmscale[cluster]'"

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how often Ray Train checks its workers
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # after this time without an answer a worker is replaced
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # then Ray Train chooses the number of workers again
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay in the working directory
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TQDM_PATCH_PRINT": "0",
}
"""Environment variables that Ray Train reads; the user's own values have priority."""

LOCAL_SETTINGS = {"RAY_worker_niceness": "0"}
"""The same for a Ray that starts here: its workers get normal priority; by default their nice value is 15."""

NODE_SETTINGS = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5"}
"""The same for processes on the cluster, to which Ray does not pass the driver's environment by itself."""


def import_ray() -> Any:
    """Imports Ray.

    Raises:
        ConfigError: Ray is not installed; the sentence says how to install it.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        with signals_kept():
            import ray  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"This needs Ray ({error}); install it: {INSTALL}.") from None
    return ray


def given_address(block: RayBlock) -> str | None:
    """The address of the cluster to join; None to start Ray here."""
    address = (block.address and block.address.real) or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is the address of a job server: use `ebmscale submit CONFIG --address {address}`; "
            "ray.address is that of the cluster itself, such as 10.0.0.1:6379 or auto."
        )
    return None if address == "local" else address


@contextmanager
def ray_session(block: RayBlock) -> Iterator[Any]:
    """Connects to the cluster at the given address, or starts Ray here and stops it at the end; yields Ray.

    Raises:
        ConfigError: Ray is missing, no cluster answers, or it refuses this user.
    """
    ray = import_ray()
    address = given_address(block)
    if address is None and math.ceil(block.cpus_per_worker) > num_cpus():
        raise ConfigError(
            f"ray.cpus_per_worker is {block.cpus_per_worker:g}, and this machine has {num_cpus()} processors; lower "
            "it, or set ray.address to the address of a cluster."
        )
    with ExitStack() as stack:
        common: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": logging.CRITICAL,
            "runtime_env": {"env_vars": {k: v for k, v in NODE_SETTINGS.items() if k not in os.environ}},
        }
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        try:
            if address is None:
                for name, value in LOCAL_SETTINGS.items():
                    os.environ.setdefault(name, value)
                stack.enter_context(private_ray())
                cores = math.ceil(max(os.cpu_count() or 1, block.most_workers * block.cpus_per_worker))
                with signals_kept(), children_use_batch_scheduling(), children_in_own_session():
                    ray.init(address="local", num_cpus=cores, include_dashboard=False, **common)
            else:
                if re.match(r"(localhost|127\.0\.0\.1|\[::1\]):", address):
                    stack.enter_context(on_loopback())
                with signals_kept():
                    _join(ray, address, common)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(_sentence(address, error)) from error
        try:
            yield ray
        finally:
            ray.shutdown()


def _join(ray: Any, address: str, common: dict[str, Any]) -> None:
    """Joins a cluster; tries again with the user's token if the cluster asks for one."""
    try:
        ray.init(address=address, **common)
    except Exception as error:
        if not is_refusal(error) and not _asks_for_token(address):
            raise
        if not answer_refusal():
            raise ConfigError(refusal_sentence(address)) from error
        ray.init(address=address, **common)


def _asks_for_token(address: str) -> bool:
    """Whether a cluster refuses this user without its token; `ray.init` only reports that it cannot connect."""
    raylet: Any = importlib.import_module("ray._raylet")
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
            raylet.GcsClient(address=address)
    except Exception as error:
        return is_refusal(error)
    return False


@contextmanager
def children_in_own_session() -> Iterator[None]:
    """Ray's processes that start inside this context get their own session.

    A terminal or a shell sends signals (Ctrl-C, SIGTERM, SIGHUP) to the whole process group. They are for the driver,
    which lets the workers save, and the cluster must not end before that. The processes still end with the driver,
    since Ray requests that from Linux.
    """
    services: Any = importlib.import_module("ray._private.services")
    start = services.ConsolePopen

    def start_apart(*arguments: Any, **options: Any) -> Any:
        return start(*arguments, start_new_session=True, **options)

    services.ConsolePopen = start_apart
    try:
        yield
    finally:
        services.ConsolePopen = start


def is_refusal(error: BaseException) -> bool:
    """Whether a cluster, or its job server, refused this user's token or asked for a missing one."""
    text = f"{type(error).__name__} {error}"
    return any(
        word in text for word in ("AuthenticationError", "Unauthenticated", "status code 401", "status code 403")
    )


def refusal_sentence(address: str | None) -> str:
    """The sentence on a refusal: what is wrong, and what to do."""
    return (
        f"The Ray cluster at {address or 'this machine'} refused the authentication token: set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's token; `ray get-auth-token` on its head prints it; "
        "`cluster/local env` prints that of a cluster on this machine."
    )


def _sentence(address: str | None, error: Exception) -> str:
    if is_refusal(error):
        return refusal_sentence(address)
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    if address is None:
        return f"Ray could not start on this machine: {reason}."
    hint = "" if os.environ.get("RAY_AUTH_MODE") == "token" else ", and set RAY_AUTH_MODE=token if it asks for a token"
    return f"Cannot join a Ray cluster at {address}: {reason}; check ray.address (or RAY_ADDRESS){hint}."


def this_place() -> str:
    """The address of this machine and the number of this process, for messages."""
    ray = sys.modules["ray"]
    return f"{ray.util.get_node_ip_address()} (process {os.getpid()})"
