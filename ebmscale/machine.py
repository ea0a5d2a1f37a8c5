"""The memory and the processors that this process may use."""

import os
import platform
import re
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def num_cpus() -> int:
    """Logical processors."""
    return os.cpu_count() or 1


def total_memory() -> int | None:
    """Bytes of memory: the machine's, or the limit of the control group where that is lower; None if unknown."""
    found = [size for size in (_system("SC_PHYS_PAGES"), _limit()) if size is not None]
    return min(found, default=None)


def free_memory() -> int | None:
    """Bytes that this process can allocate now without swapping; None if unknown."""
    available, limit = _available(), _limit()
    if limit is not None:
        used = _number(_CGROUP / "memory.current") or 0
        available = min(limit - used, limit if available is None else available)
    return available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that this process, or its GPU, has no more memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    )


def out_of_memory(error: BaseException) -> str:
    """The sentence for an exception of `is_out_of_memory`."""
    asked = re.search(r"allocate ([0-9]+ bytes|[0-9.]+ [A-Z]iB)", str(error))
    size = f" of {asked[1]}" if asked else ""
    return f"There is not enough memory for an array{size}; ask for less: fewer or smaller samples, or narrower layers."


def describe() -> dict[str, str | int]:
    """The processor, its cores, the GPU if there is one, and the versions of Python and torch: where figures are of."""
    import torch  # noqa: PLC0415 (others of this file are called where torch is not needed)

    found: dict[str, str | int] = {"processor": _processor(), "cores": num_cpus()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found | {"python": platform.python_version(), "torch": torch.__version__}


def _processor() -> str:
    """The name of the processor, or of its kind."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _system(name: str) -> int | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _system("SC_AVPHYS_PAGES")


def _limit() -> int | None:
    """The memory limit of the control group, in either version."""
    places = (_CGROUP / "memory.max", _CGROUP / "memory" / "memory.limit_in_bytes")
    found = [size for size in map(_number, places) if size is not None]
    return min(found, default=None)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdigit() else None
