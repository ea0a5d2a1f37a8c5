"""Callbacks of Ray Train's controller: they delay workers until they may start, and handle their failures.

The controller is a separate process that imports this module, so this module does not import torch.
"""

import time
from typing import Any

from ebmscale.errors import EbmscaleError, WorkersLostError
from ebmscale.runtime.board import Failure

RESIZE_POLL_S = 0.2


def callbacks(board: Any, grace_s: float) -> list[Any]:
    """The callbacks of Ray Train's controller.

    Args:
        board: handle of the board's actor.
        grace_s: how long a resize waits for the current workers to save.
    """
    import ray  # noqa: PLC0415
    from ray.train import UserCallback  # noqa: PLC0415
    from ray.train.v2._internal.execution.callback import ControllerCallback  # noqa: PLC0415

    class FailureHandler(UserCallback):
        """Ends the run for an error that new workers would meet again; the board decides about all others."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, EbmscaleError):
                    raise error
            failures = {rank: failure_of(error) for rank, error in worker_exceptions.items()}
            sentence = ray.get(board.lost.remote(failures))
            if sentence is not None:
                raise WorkersLostError(sentence)

    class SaveBeforeResize(ControllerCallback):
        """Delays the first workers until the preflight has passed, and later ones until the current ones have saved."""

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            while not ray.get(board.may_start.remote()):
                time.sleep(RESIZE_POLL_S)
            deadline = time.monotonic() + grace_s
            if ray.get(board.all_left.remote()):
                return
            ray.get(board.request.remote("resize"))
            while time.monotonic() < deadline and not ray.get(board.all_left.remote()):
                time.sleep(RESIZE_POLL_S)
            ray.get(board.end_group.remote())

    return [FailureHandler(), SaveBeforeResize()]


def failure_of(error: BaseException) -> Failure:
    """Translates Ray's exception into how a worker failed."""
    from ray.exceptions import RayActorError  # noqa: PLC0415

    inner = getattr(error, "health_check_failure", error)
    text = " ".join(str(inner).split())
    if isinstance(inner, RayActorError):
        if inner.preempted:
            return Failure("preempted", "")
        if "low on memory" in text:
            return Failure("died", "its machine ran out of memory")
        return Failure("gone", "") if "node has died" in text or "node is dead" in text else Failure("died", "")
    if type(inner).__module__.startswith("ray."):
        return Failure("died", type(inner).__name__)
    return Failure("raised", f"{type(inner).__name__}: {text[:300]}")
