"""The memory of this process on the host."""

import re
import resource
import sys
from pathlib import Path


def resident_bytes() -> int:
    """The resident memory of this process now, or its peak if the system reports only that."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """The peak resident memory of this process.

    On Linux `ru_maxrss` cannot be used: a process starts with the peak of its parent.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
