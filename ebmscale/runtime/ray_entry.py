"""Where Ray Train enters a worker. Driver and controller name this function, and do without torch and our training."""

from typing import Any

from ebmscale.runtime.worker_settings import Body


def enter(parameters: dict[str, Any]) -> Any:
    """Runs `parameters["body"]`, or where it is None the body of every run, with `parameters["settings"]`."""
    body: Body | None = parameters["body"]
    if body is None:
        from ebmscale.runtime.ray_worker import ray_worker  # noqa: PLC0415 (with torch)

        body = ray_worker
    return body(parameters["settings"])
