"""`ebmscale tune` that says at its end which of the cluster's CPUs are free, with the search still on.

python -m tests.runtime.search_driver CONFIG --space FILE
"""

import sys
import time
from typing import Any

from ebmscale.cli import main
from ebmscale.search import driver as ray_search

WAIT_S = 60.0

_follow = ray_search._follow


def follow_and_count(tune_run: Any, *arguments: Any) -> None:
    _follow(tune_run, *arguments)
    ray = tune_run.ray
    total, deadline = ray.cluster_resources()["CPU"], time.monotonic() + WAIT_S
    while ray.available_resources().get("CPU", 0.0) < total and time.monotonic() < deadline:
        time.sleep(0.5)
    print(f"CPUs free {ray.available_resources().get('CPU', 0.0):g} of {total:g}", flush=True)


if __name__ == "__main__":
    ray_search._follow = follow_and_count
    sys.argv[1:1] = ["tune"]
    main()
