"""What a process has in the host's memory."""

import re
import resource
import sys
from pathlib import Path


def resident_bytes() -> int:
    """What this process has in the host's memory now; its peak where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """The most that this process has had in the host's memory.

    On Linux `ru_maxrss` is not that: a process begins with the peak of the one that started it.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
