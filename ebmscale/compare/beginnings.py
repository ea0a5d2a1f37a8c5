"""What the runs of several rows train in common, before their priors begin to be learned: it is trained once.

A row's run starts from there (`run.start_from`), and its metrics have those of the beginning too. So every row has the
results and the processor seconds of a run that trains all of it alone. What is measured of encoder and generator alone
is measured on the beginning, once for all of its rows.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ebmscale.address import Address
from ebmscale.compare.rows import Job
from ebmscale.config import CIRCUMSTANCES, PriorBlock, RunConfig, StagesBlock, with_values
from ebmscale.model.checkpoint import position_of
from ebmscale.model.checkpoint_reader import CheckpointReader
from ebmscale.model.run_folder import run_storage
from ebmscale.storage import Storage

FOR_ALL = ("num_chains", "num_particles")
"""Keys of `prior` that must suit the number of streams; they change nothing before the prior is learned."""

DIGEST = 8  # characters in the name of the run


@dataclass
class Beginning:
    """What several runs train first, as a run of its own.

    Attributes:
        config: of that run.
    """

    config: RunConfig
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _measured: bool = False

    @property
    def is_trained(self) -> bool:
        """Whether it has a checkpoint at its end."""
        names = CheckpointReader(run_storage(self.config)).finished()
        return bool(names) and position_of(names[0]) >= self.config.train.max_samples

    def trained(self, train: Callable[[RunConfig], None]) -> Address:
        """Its address; `train` trains it if that is not done yet. Several threads may call this."""
        with self._lock:
            if not self.is_trained:
                train(self.config)
        return run_storage(self.config).url

    def measures(self, row: RunConfig) -> tuple[str, ...]:
        """The metrics that are the same for the beginning and for the run of a row of it.

        The ceiling is, where posteriors are the encoder's: chains would move them under the row's own prior.
        """
        return ("ceiling",) if row.posterior.num_steps == 0 and self.is_trained else ()

    def measured(self, measure: Callable[[RunConfig], None]) -> Storage:
        """Its storage; `measure` evaluates it at the first call. Several threads may call this."""
        with self._lock:
            if not self._measured:
                measure(self.config)
                self._measured = True
        return run_storage(self.config)


def find_beginnings(jobs: Sequence[Job]) -> dict[str, Beginning]:
    """The beginnings that at least two runs have in common, by the name of each run that has one.

    Only where generator and encoder stop before: elsewhere their rates depend on the length of the run.
    """
    groups = dict[str, tuple[Beginning, list[str]]]()
    for job in jobs:
        config = _beginning_of(job.config)
        if config is not None:
            _, runs = groups.setdefault(config.run.name, (Beginning(config), []))
            runs.append(job.config.run.name)
    return {run: beginning for beginning, runs in groups.values() for run in runs if len(runs) > 1}


def in_turn(jobs: Sequence[Job], beginnings: Mapping[str, Beginning]) -> list[int]:
    """The places of the jobs in the order in which they start: first one of every beginning, so that none waits."""
    seen, later = set[int](), list[bool]()
    for job in jobs:
        beginning = id(beginnings.get(job.config.run.name))
        later.append(beginning in seen)
        seen.add(beginning)
    return sorted(range(len(jobs)), key=later.__getitem__)


def has_begun(config: RunConfig) -> bool:
    """Whether a run has a checkpoint of its own."""
    return bool(CheckpointReader(run_storage(config)).finished())


def _beginning_of(config: RunConfig) -> RunConfig | None:
    """What a run trains before its prior is learned, as a run; None where the generator goes on with the prior."""
    if not config.has_two_stages:
        return None
    stages = config.stages.model_dump(include={"buffer_samples", "evidence_every", "evidence_samples"})
    prior = config.prior.model_dump(include=set(FOR_ALL))
    values = {
        "method": "gaussian",
        "prior": PriorBlock(**prior).model_dump(),
        "stages": StagesBlock(**stages, start_samples=0, max_stages=0).model_dump(),
        "model.ratio": type(config.model.ratio)().model_dump(),
        "train.ratio": type(config.train.ratio)().model_dump(),
        "train.max_samples": int(config.prior_begins),
    }
    found = with_values(config, values, f"the beginning of {config.run.name}")
    settings = found.model_dump(mode="json", exclude={"run", *CIRCUMSTANCES})
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGEST]
    run = found.run.model_copy(update={"name": f"beginning-{digest}-seed{found.run.seed}"})
    return found.model_copy(update={"run": run})
