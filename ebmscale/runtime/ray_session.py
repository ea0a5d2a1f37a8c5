"""Joins a running Ray cluster, or starts Ray on this machine for the time of a run."""

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
from ebmscale.runtime.scheduling import children_wait_their_turn
from ebmscale.stop import signals_kept

ANSWER_S = 10.0  # for a cluster's port to answer
INSTALL = "pip install 'ebmscale[cluster]'"

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how often Ray Train looks after its workers
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # a worker that does not answer that long is replaced
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",  # then the number of workers is thought over
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers stay in the working directory
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TQDM_PATCH_PRINT": "0",
}
"""What Ray Train reads from the environment, unless the user has set it."""

LOCAL_SETTINGS = {"RAY_worker_niceness": "0"}
"""The same for a Ray that is started here: its workers are not to give way to everything else, as by default."""

NODE_SETTINGS = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5"}
"""The same for processes on the cluster, which Ray does not pass on by itself."""


def import_ray() -> Any:
    """Ray, or a sentence on how to get it.

    Raises:
        ConfigError: it is not installed.
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
    """The address of the cluster to join, None to start Ray here."""
    address = (block.address and block.address.real) or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is where jobs are sent to: use `ebmscale submit CONFIG --address {address}`; "
            "ray.address is the cluster's own, such as 10.0.0.1:6379 or auto."
        )
    return None if address == "local" else address


@contextmanager
def ray_session(block: RayBlock) -> Iterator[Any]:
    """Ray, connected: to the cluster at the given address, or started here and stopped at the end.

    Raises:
        ConfigError: Ray is missing, no cluster answers, or it refuses this user.
    """
    ray = import_ray()
    address = given_address(block)
    if address is None and math.ceil(block.cpus_per_worker) > num_cpus():
        raise ConfigError(
            f"ray.cpus_per_worker is {block.cpus_per_worker:g}, and this machine has {num_cpus()} processors; lower "
            "it, or give the address of a cluster as ray.address."
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
                with signals_kept(), children_wait_their_turn(), children_apart():
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
    """Joins a cluster; one that asks for a token gets the one that is there."""
    try:
        ray.init(address=address, **common)
    except Exception as error:
        if not is_refusal(error) and not _asks_for_token(address):
            raise
        if not answer_refusal():
            raise ConfigError(refusal(address)) from error
        ray.init(address=address, **common)


def _asks_for_token(address: str) -> bool:
    """Whether a cluster refuses this user for want of its token; `ray.init` only says that it cannot connect."""
    raylet: Any = importlib.import_module("ray._raylet")
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
            raylet.GcsClient(address=address)
    except Exception as error:
        return is_refusal(error)
    return False


@contextmanager
def children_apart() -> Iterator[None]:
    """Ray's processes that are started inside get a session of their own.

    What a terminal or a shell sends to the whole process group (Ctrl-C, SIGTERM, SIGHUP) is for the driver, which lets
    the workers save; the cluster under them must not end before that. The processes still end with the driver, since
    Ray asks Linux for that.
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
    """Whether a cluster, or its job server, refused this user's token or the want of one."""
    text = f"{type(error).__name__} {error}"
    return any(
        word in text for word in ("AuthenticationError", "Unauthenticated", "status code 401", "status code 403")
    )


def refusal(address: str | None) -> str:
    """What to do about a refusal."""
    return (
        f"The Ray cluster at {address or 'this machine'} refused the authentication token: set RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's own; `ray get-auth-token` on its head shows it, and "
        "`cluster/local env` that of a cluster on this machine."
    )


def _sentence(address: str | None, error: Exception) -> str:
    if is_refusal(error):
        return refusal(address)
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    if address is None:
        return f"Ray could not be started on this machine: {reason}."
    hint = "" if os.environ.get("RAY_AUTH_MODE") == "token" else ", and RAY_AUTH_MODE=token where it asks for one"
    return f"No Ray cluster can be joined at {address}: {reason}; check ray.address (or RAY_ADDRESS){hint}."


def this_place() -> str:
    """This process's machine and number, as messages name it."""
    ray = sys.modules["ray"]
    return f"{ray.util.get_node_ip_address()} (process {os.getpid()})"
