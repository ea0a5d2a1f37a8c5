"""What the drivers of runs and of searches share: notes for jobs, and the choice of devices and threads."""

import os
from typing import Any

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError
from ebmscale.terminal import Terminal


def note_for_jobs(config: RunConfig, console: Terminal) -> None:
    """Prints notes for a job that was not submitted by `ebmscale submit`."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    if "RAY_JOB_STOP_WAIT_TIME_S" not in os.environ:
        console.print(
            "note: `ray job stop` gives this job 3 s to save; for more time use `ebmscale submit`, or set "
            "RAY_JOB_STOP_WAIT_TIME_S in the env_vars of its runtime environment"
        )
    if config.storage.url.is_relative:
        console.print(
            f"note: storage.url is {config.storage.url}, a temporary folder of this job; set it to a permanent one"
        )


def with_devices(config: RunConfig, ray: Any) -> RunConfig:
    """Returns the configuration with the device and the number of threads of each worker."""
    block = config.ray
    gpus = block.gpus_per_worker
    if gpus is None:
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        gpus = 1 if config.device == "cuda" or (config.device == "auto" and has_gpus) else 0
    if config.device == "cuda" and not gpus:
        raise ConfigError("device is cuda and ray.gpus_per_worker is 0; leave one of them out.")
    return config.model_copy(
        update={
            "ray": block.model_copy(update={"gpus_per_worker": gpus}),
            "device": "cuda" if gpus else "cpu",
            "num_threads": config.num_threads or max(1, int(block.cpus_per_worker)),
        }
    )


def here(ray: Any) -> dict[str, Any]:
    """Options that place an actor on this machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
