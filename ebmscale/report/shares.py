"""How much of the way from N(0, I) to what a generator allows the prior of each row goes."""

from collections.abc import Sequence
from dataclasses import replace

from ebmscale.report.result import Result

FROM = "gaussian"
"""The row with the prior N(0, I), from which the way is counted."""
CEILING, SHARE = "ceiling_", "share-"


def with_shares(results: Sequence[Result]) -> list[Result]:
    """The results with `share-NAME` for every Frechet distance FD-NAME, or FID, that has a ceiling.

    It is (A - D) / (A - C), with the distance D and the ceiling C of the run, and the distance A of the row `gaussian`
    with the same seed. 1 is a perfect prior; above 1 the samples are nearer than decoded posteriors are.
    """
    starts = {result.seed: result.measured for result in results if result.row == FROM}
    found = []
    for result in results:
        shares = {}
        for name, ceiling in result.measured.items():
            distance = name.removeprefix(CEILING)
            start = starts.get(result.seed, {}).get(distance)
            if name == distance or not distance.startswith(("FD", "FID")) or start is None or start == ceiling:
                continue
            shares[SHARE + distance.removeprefix("FD-")] = (start - result.measured[distance]) / (start - ceiling)
        found.append(replace(result, measured={**result.measured, **shares}))
    return found
