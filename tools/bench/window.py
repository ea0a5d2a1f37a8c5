"""CPU seconds of a run's processes and of all other processes in a window of time, for `on_ray.py`."""

import contextlib
import os
import time

import psutil

MARK = "EBMSCALE_BENCH"
"""The variable that marks the processes of a run in their environment."""


class Window:
    """CPU seconds of the processes with this mark, and of all others, from its making to `close`.

    Args:
        mark: the value of the variable `MARK` in the environment of the run's processes.
    """

    def __init__(self, mark: str):
        self._mark = mark
        self._wall, self._busy, self._ours = time.perf_counter(), busy_seconds(), self._processes()

    def close(self, num_updates: int, num_cores: int, gone_s: float = 0.0) -> dict[str, float]:
        """The cost of an update in this window, and the share of the machine that other processes took.

        Args:
            num_updates: of the run in this window.
            num_cores: of the run.
            gone_s: CPU seconds of the run's processes that have ended.
        """
        ours = self._processes()
        wall_s, busy_s = time.perf_counter() - self._wall, busy_seconds() - self._busy
        spent = {pid: (title, cpu - self._ours.get(pid, ("", 0.0))[1]) for pid, (title, cpu) in ours.items()}
        all_s = gone_s + sum(cpu for _, cpu in spent.values())
        workers = [cpu for title, cpu in spent.values() if title.startswith("ray::RayTrainWorker")]
        return {
            "wall_s": wall_s / num_updates,
            "worker_cpu_s": max(workers, default=0.0) / num_updates,
            "cpu_a_core_s": all_s / num_updates / num_cores,
            "others": max(busy_s - all_s, 0.0) / wall_s / (os.cpu_count() or 1),
        }

    def _processes(self) -> dict[int, tuple[str, float]]:
        """Title and CPU seconds so far of the run's processes, by their ids."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    used = process.cpu_times()
                    found[process.pid] = (" ".join(process.cmdline()), used.user + used.system)
        return found


def busy_seconds() -> float:
    """CPU seconds so far of all cores together."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq
