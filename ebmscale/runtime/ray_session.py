"""Joins a running Ray cluster, or starts Ray on this machine for the time of a run."""

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ebmscale.config import RayBlock
from ebmscale.errors import ConfigError
from ebmscale.runtime.scheduling import children_wait_their_turn

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
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"This needs Ray ({error}); install it: {INSTALL}.") from None
    return ray


def given_address(block: RayBlock) -> str | None:
    """The address of the cluster to join, None to start Ray here."""
    address = block.address or os.environ.get("RAY_ADDRESS") or None
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
            cores = math.ceil(max(os.cpu_count() or 1, block.most_workers * block.cpus_per_worker))
            with children_wait_their_turn():
                ray.init(address="local", num_cpus=cores, include_dashboard=False, **common)
        else:
            ray.init(address=address, **common)
    except Exception as error:
        raise ConfigError(_sentence(address, error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


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
        "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's own; `ray get-auth-token` on its head shows it."
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
