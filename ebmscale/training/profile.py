"""`profile=true`: measures the time of the parts of an update, as a trace and as a table.

A few batches after the start of the process are measured. In one the FLOPs of every part are counted, three are
timed, and one is traced. The run then has `profile/trace.json`, for chrome://tracing or Perfetto, and
`profile/table.txt`. Only rank 0 measures. The results of training do not change.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as trace

from ebmscale.config import RunConfig
from ebmscale.errors import StorageError
from ebmscale.kernels.rate import FlopCount, clock_s, matrix_rate
from ebmscale.storage import Storage
from ebmscale.training.metrics import PartTimer
from ebmscale.training.sampling import SamplingCopy

log = logging.getLogger(__name__)

WARM, COUNTED, TIMED = 2, 1, 3
"""Number of batches before the measurement, with counted FLOPs, and with timing; one more batch is traced."""
TRACE_FILE, TABLE_FILE = "profile/trace.json", "profile/table.txt"
IN_FP32 = ("ratio", "data")
"""Parts that compute in fp32 at any precision of the run."""


class Profile:
    """Measures the parts of the updates of a run.

    Args:
        config: of the run.
        storage: the run's, for trace and table.
        timer: of the run. Its parts are measured until the profile is written.
        device: on which the run computes.
        sampling: the sampling copy of the networks, which the chains use.
    """

    def __init__(
        self, config: RunConfig, storage: Storage, timer: PartTimer, device: torch.device, sampling: SamplingCopy
    ):
        self._config, self._storage, self._timer, self._device = config, storage, timer, device
        self._sampling = sampling
        self._num_batches = 0
        self._seconds: dict[str, float] = {}
        self._flops: dict[str, int] = {}
        timer.around = self._part

    @contextmanager
    def batch(self) -> Iterator[None]:
        """A context for one `train_batch`."""
        self._num_batches += 1
        if self._num_batches != WARM + COUNTED + TIMED + 1:
            yield
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with trace(activities=activities) as tracer:
            yield
        self._timer.around = None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            tracer.export_chrome_trace(str(file))
            content = file.read_bytes()
        table = self.table()
        log.info("%s", table)
        try:
            self._storage.publish(TRACE_FILE, content)
            self._storage.publish(TABLE_FILE, table.encode())
        except StorageError as error:
            log.warning("the profile cannot be written and is only shown here: %s", error)
            return
        log.info("profile  %s\ntrace    %s", *map(self._storage.url_of, (TABLE_FILE, TRACE_FILE)))

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        at = self._num_batches - WARM
        with ExitStack() as stack:
            count = None
            if 0 < at <= COUNTED:
                if self._device.type == "cuda":  # the kernels of a graph cannot be counted
                    stack.enter_context(self._sampling.step_by_step())
                count = stack.enter_context(FlopCount())
            stack.enter_context(record_function(name))
            begin = clock_s(self._device)
            yield
            taken = clock_s(self._device) - begin
        if count is not None:
            self._flops[name] = self._flops.get(name, 0) + count.total
        elif COUNTED < at <= COUNTED + TIMED:
            self._seconds[name] = self._seconds.get(name, 0.0) + taken / TIMED

    def table(self) -> str:
        """A table: part, seconds, FLOPs, rate, and the rate divided by the matrix rate in the precision of the part."""
        dtypes = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if self._config.precision == "bf16" else {})
        rates = {name: matrix_rate(dtype, self._device) for name, dtype in dtypes.items()}
        unit = "seconds" if self._device.type == "cuda" else "CPU s"
        lines = [f"{'part':12} {unit:>9} {'of all':>7} {'GFLOP':>9} {'GFLOP/s':>9}  share of the matrix rate"]
        whole = sum(self._seconds.values()) or 1.0
        for name, seconds in self._seconds.items():
            flops, kind = self._flops.get(name, 0), "fp32" if name in IN_FP32 else self._config.precision
            rate = flops / seconds if seconds else 0.0
            share = f"{rate / rates[kind]:7.1%} of {rates[kind] / 1e9:.0f} ({kind})" if flops else ""
            numbers = f"{seconds:9.4f} {seconds / whole:7.1%} {flops / 1e9:9.3f} {rate / 1e9:9.1f}"
            lines.append(f"{name:12} {numbers}  {share}".rstrip())
        flops = sum(self._flops.get(name, 0) for name in self._seconds)
        lines.append(f"{'update':12} {whole:9.4f} {1:7.1%} {flops / 1e9:9.3f} {flops / whole / 1e9:9.1f}")
        return "\n".join(lines)
