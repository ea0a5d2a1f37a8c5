"""How many samples the runs of a row may train on, so that all rows cost the same."""

import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from ebmscale.compare.rows import Job
from ebmscale.config import CIRCUMSTANCES, RunConfig
from ebmscale.errors import ConfigError
from ebmscale.storage import Storage
from ebmscale.stored import Size, Stored, read_document

PILOT_FILE = "budget.json"


class Pilot(Stored):
    """The number of samples that a row's budget allows, and the settings and budget of this forecast."""

    samples: Size
    wanted: dict[str, Any]


def budgeted(
    jobs: list[Job],
    cpu_s: float,
    storage: Storage,
    samples_within: Callable[[RunConfig, float], int],
    say: Callable[[str], None],
) -> list[Job]:
    """The jobs with the number of samples that the budget allows. It is the same for all seeds of a row.

    The cost of a row is forecast once, and again only if its settings or the budget have changed.
    """
    known: dict[str, Any] = {}
    if storage.exists(PILOT_FILE):
        pilots = read_document(storage, PILOT_FILE, dict[str, Pilot])
        known = {row: pilot.model_dump() for row, pilot in pilots.items()}
    found = []
    for job in jobs:
        wanted = {"cpu_s": cpu_s, "config": job.config.model_dump(mode="json", exclude={"run", *CIRCUMSTANCES})}
        if job.row not in known or known[job.row]["wanted"] != wanted:
            known[job.row] = {"samples": samples_within(job.config, cpu_s), "wanted": wanted}
            storage.publish(PILOT_FILE, json.dumps(known, indent=1).encode())
            say(f"{job.row}: {known[job.row]['samples']:,} samples in {cpu_s:g} CPU seconds")
        changed = job.config.model_dump()
        changed["train"]["max_samples"] = known[job.row]["samples"]
        try:
            found.append(Job(job.row, RunConfig.model_validate(changed)))
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            samples = known[job.row]["samples"]
            raise ConfigError(f"row {job.row}: {cpu_s:g} CPU seconds allow {samples:,} samples: {problem}.") from None
    return found
