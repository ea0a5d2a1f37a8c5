"""What every driver on Ray does, be it of a run or of a search: settles the configuration."""

import os
from typing import Any

from ebmscale.config import RunConfig
from ebmscale.errors import ConfigError
from ebmscale.terminal import Terminal


def note_for_jobs(config: RunConfig, console: Terminal) -> None:
    """Says what a job that was not sent by `ebmscale submit` should know."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return
    if "RAY_JOB_STOP_WAIT_TIME_S" not in os.environ:
        console.print(
            "note: `ray job stop` leaves this job 3 s to save; `ebmscale submit`, or RAY_JOB_STOP_WAIT_TIME_S among "
            "the env_vars of its runtime environment, gives it longer"
        )
    if config.storage.url.is_relative:
        console.print(f"note: storage.url is {config.storage.url}, a temporary folder of this job; give one that lasts")


def with_devices(config: RunConfig, ray: Any) -> RunConfig:
    """The configuration with each worker's device and threads settled."""
    block = config.ray
    gpus = block.gpus_per_worker
    if gpus is None:
        there = ray.cluster_resources().get("GPU", 0) > 0
        gpus = 1 if config.device == "cuda" or (config.device == "auto" and there) else 0
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
    """Options that keep an actor on this machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}
