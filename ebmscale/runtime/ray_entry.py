"""The entry point of a worker. Driver and controller import it, so it imports neither torch nor `ebmscale.training`."""

from typing import Any

from ebmscale.runtime.worker_settings import Body


def enter(parameters: dict[str, Any]) -> Any:
    """Runs `parameters["body"]` with `parameters["settings"]`; if the body is None, runs `ray_worker`."""
    body: Body | None = parameters["body"]
    if body is None:
        from ebmscale.runtime.ray_worker import ray_worker  # noqa: PLC0415 (with torch)

        body = ray_worker
    return body(parameters["settings"])
