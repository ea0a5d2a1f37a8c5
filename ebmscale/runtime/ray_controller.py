"""What runs in Ray Train's controller: holds workers back until they may start, and judges how they failed.

The controller is a process of its own that imports this module, so it does without torch.
"""

import time
from typing import Any

from ebmscale.errors import EbmscaleError, WorkersLostError
from ebmscale.runtime.board import Failure

RESIZE_POLL_S = 0.2


def callbacks(board: Any, grace_s: float) -> list[Any]:
    """What runs in Ray Train's controller."""
    import ray  # noqa: PLC0415
    from ray.train import UserCallback  # noqa: PLC0415
    from ray.train.v2._internal.execution.callback import ControllerCallback  # noqa: PLC0415

    class Judge(UserCallback):
        """Errors that no new worker would mend end the run; what others mean, the board decides."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, EbmscaleError):
                    raise error
            failures = {rank: failure_of(error) for rank, error in worker_exceptions.items()}
            sentence = ray.get(board.lost.remote(failures))
            if sentence is not None:
                raise WorkersLostError(sentence)

    class SaveFirst(ControllerCallback):
        """The first workers wait for the preflight; later ones for those before to save, so growing loses nothing."""

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            while not ray.get(board.is_clear.remote()):
                time.sleep(RESIZE_POLL_S)
            deadline = time.monotonic() + grace_s
            if ray.get(board.all_left.remote()):
                return
            ray.get(board.request.remote("resize"))
            while time.monotonic() < deadline and not ray.get(board.all_left.remote()):
                time.sleep(RESIZE_POLL_S)
            ray.get(board.end_group.remote())

    return [Judge(), SaveFirst()]


def failure_of(error: BaseException) -> Failure:
    """How a worker failed, from what Ray says of it."""
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
