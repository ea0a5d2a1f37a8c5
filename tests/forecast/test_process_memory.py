"""A process's memory is its own: not that of the process that started it."""

import subprocess
import sys

from ebmscale.forecast.process_memory import peak_bytes, resident_bytes
from tests.runtime.local_cluster import ROOT

LARGE = 300_000_000
PARENT = f"""
import subprocess, sys
held = bytearray(b"x") * {LARGE}
code = "from ebmscale.forecast.process_memory import peak_bytes; print(peak_bytes())"
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
"""


def test_a_peak_is_what_was_held_though_it_is_gone() -> None:
    before = resident_bytes()
    held = bytearray(b"x") * LARGE
    during = resident_bytes()
    del held
    assert during - before > 0.9 * LARGE
    assert peak_bytes() - before > 0.9 * LARGE


def test_a_large_parent_does_not_count() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], cwd=ROOT, text=True, capture_output=True, check=True)
    assert int(done.stdout) < LARGE
