"""One training run and many faults: when they come, what is done after each, and what is verified at the end."""

import functools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import s3fs

from tests.chaos.faults import LONG_OUTAGE, NEW_TOPOLOGY, Kind
from tests.chaos.history import Check, check_logs, check_samples
from tests.chaos.leg import Leg, Topology
from tests.chaos.plan import BATCH, BUCKET, Limits, Plan, config_text, make_schedule
from tests.chaos.store import Outcome, RunView, differences
from tests.faulty_proxy import FaultyProxy
from tests.s3_server import KEY, SECRET, S3Server

NUM_STARTS = 3  # of a leg that ends by itself, before the campaign gives up
LOOK_S = 0.3


@dataclass
class Fault:
    """A fault that was injected; `survived` is None until the run has gone on after it."""

    kind: str
    position: int
    topology: str
    note: str = ""
    repeated: float = 0.0
    survived: bool | None = None


@dataclass
class Result:
    """What a campaign found."""

    plan: Plan
    faults: list[Fault] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every fault was survived and every check holds."""
        return all(fault.survived for fault in self.faults) and all(check.ok for check in self.checks)


class Campaign:
    """Trains one run against a server that it may kill, through a proxy that it may tell to misbehave.

    Args:
        plan: what to do.
        folder: for the configuration, the logs and the traces.
        server: a running one, with nothing of this campaign's on it.
        say: is told what happens.
    """

    def __init__(self, plan: Plan, folder: Path, server: S3Server, say: Callable[[str], None] = lambda _: None):
        self.plan = plan
        self.limits: Limits = plan.limits
        self.server = server
        self.chance: random.Random = random.Random(plan.seed)
        self.proxy = FaultyProxy(server.url, seed=plan.seed)
        self.view = RunView(server.url, f"{BUCKET}/runs/disturbed")
        self.saved_at_end = False  # whether the leg that was stopped said that it had saved
        self._folder, self._say = folder, say
        self._schedule = make_schedule(plan.num_faults, self.chance)
        self._spacing = plan.spacing * plan.checkpoint_every
        self._max_samples = plan.max_samples(len(self._schedule))
        self._legs: list[Leg] = []
        self._rivals: list[Leg] = []
        self._leg: Leg | None = None
        self._expected = 0
        self._waiting: list[Fault] = []  # faults after which the run has not gone on yet
        self._postponed: list[Kind] = []
        self._odd: list[str] = []
        self._result = Result(plan)

    @property
    def running(self) -> Leg:
        """The leg that is training."""
        assert self._leg is not None
        return self._leg

    def short(self, path: str) -> str:
        """A request's path without what all have in common."""
        return path.removeprefix(f"/{BUCKET}/runs/disturbed/")

    def run(self) -> Result:
        """Does everything; the result says what was found."""
        begin = time.monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "run.yaml").write_text(config_text(self.plan, len(self._schedule)))
        s3fs.S3FileSystem(endpoint_url=self.server.url, key=KEY, secret=SECRET).mkdir(BUCKET)
        undisturbed = self._undisturbed() if self.plan.is_fixed else None
        try:
            for index, (kind, followers) in enumerate(self._schedule, start=1):
                self._train_to(index * self._spacing)
                self._strike(kind)
                if self._leg is None:
                    waiting, self._postponed = [*self._postponed, *followers], []
                    for follower in waiting:
                        self._strike_down(follower)
                else:
                    self._postponed += followers
            self._finish()
            self._verify(undisturbed)
        except RuntimeError as error:
            self._result.checks.append(Check("the run gets to its end", False, str(error)))
        finally:
            self.proxy.close()
            for leg in (*self._legs, *self._rivals):
                leg.kill()
        self._result.figures |= {"seconds": round(time.monotonic() - begin, 1), "starts": len(self._legs)}
        return self._result

    def start_leg(self) -> Leg:
        """Starts the same command again, if the plan has several topologies on another one."""
        before = self._legs[-1].topology if self._legs else None
        others = [topology for topology in self.plan.topologies if topology != before]
        topology = self.chance.choice(others or list(self.plan.topologies))
        self._expected = self.view.newest_valid()
        if before is not None and topology != before:
            self._record(Fault(NEW_TOPOLOGY, self._expected, f"{before} to {topology}"))
        leg = self._start(f"leg-{len(self._legs):03d}", "disturbed", topology, self.proxy.url)
        self._legs.append(leg)
        return leg

    def start_rival(self) -> Leg:
        """Starts the same command beside the leg that is training."""
        rival = self._start(f"rival-{len(self._rivals):03d}", "disturbed", self.running.topology, self.proxy.url)
        self._rivals.append(rival)
        return rival

    def _start(self, name: str, run: str, topology: Topology, endpoint: str) -> Leg:
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": endpoint}
        return Leg(self._folder / name, [str(self._folder / "run.yaml"), f"run.name={run}"], topology, keys)

    def _undisturbed(self) -> Outcome:
        """The same run, left alone."""
        self._say(f"undisturbed run to {self._max_samples:,} samples on {self.plan.topologies[0]}")
        leg = self._start("undisturbed", "undisturbed", self.plan.topologies[0], self.server.url)
        try:
            leg.wait(self.limits.finish_s + 0.1 * self._max_samples)
            if leg.exit_code != 0:
                raise RuntimeError(f"the undisturbed run ended with code {leg.exit_code}:\n{leg.log_tail()}")
        finally:
            leg.kill()
        return RunView(self.server.url, f"{BUCKET}/runs/undisturbed").outcome()

    def _train_to(self, position: int) -> None:
        """Until the run has got there, started as often as needed."""
        for _ in range(NUM_STARTS):
            if self._leg is None:
                self._leg = self.start_leg()
            leg = self._leg
            leg.wait_until(functools.partial(has_begun, leg), self.limits.start_s)
            self._confirm(leg)
            if leg.wait_until(functools.partial(has_reached, leg, position), self.limits.step_s):
                return
            self._ended_by_itself(leg)
        raise RuntimeError(f"the run does not get to {position:,} samples:\n{self._legs[-1].log_tail()}")

    def _confirm(self, leg: Leg) -> None:
        """Whether the run went on where the newest valid checkpoint was; if so, the faults before were survived."""
        first = leg.first()
        if first is None:
            return
        for fault in self._waiting:
            fault.survived = fault.survived is not False and first == self._expected
            if first != self._expected:
                fault.note += f"; went on at {first:,} and not at {self._expected:,}"
        self._waiting.clear()

    def _ended_by_itself(self, leg: Leg) -> None:
        state = f"ended with {leg.exit_code}, ranks {leg.rank_codes()}" if not leg.is_running else "stood still"
        self._odd.append(f"{leg.folder.name} on {leg.topology} {state} at {leg.position():,}")
        self._say(f"!! {self._odd[-1]}\n{leg.log_tail()}")
        leg.kill()
        self._leg = None

    def _strike(self, kind: Kind) -> None:
        """Injects a fault into the run that is training."""
        leg = self.running
        fault = Fault(kind.name, leg.position(), str(leg.topology))
        self.saved_at_end = False
        leg.slow_down(kind.when == "passes")  # so that the storage recovers before the run has ended
        try:
            fault.note = kind.inject(self)
        except (TimeoutError, AssertionError) as error:
            fault.note, fault.survived = str(error), False
        if kind.when == "ends" or not self._goes_on(leg, fault):
            leg.kill()
            self._leg = None
            last, kept = leg.position(), self.view.newest_valid()
            fault.repeated = (last - kept) / BATCH
            if self.saved_at_end and kept != last:
                fault.survived = False
                fault.note += f"; exit code 130 says saved, but {last:,} was trained and {kept:,} is kept"
        self._record(fault)

    def _goes_on(self, leg: Leg, fault: Fault) -> bool:
        """Whether the leg lives and has finished a checkpoint after a fault that may pass."""
        before, deadline = self.view.newest_finished(), time.monotonic() + self.limits.step_s
        while leg.is_running and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            if self.view.newest_finished() > before:
                fault.survived = fault.survived is not False
                leg.slow_down(False)
                return True
        stood_still = leg.is_running
        leg.kill()
        codes = leg.rank_codes()
        fault.note += "; stood still" if stood_still else f"; ended with {leg.exit_code}, ranks {codes}"
        if 4 not in codes.values() or fault.kind != LONG_OUTAGE:
            fault.survived = False
        return False

    def _strike_down(self, kind: Kind) -> None:
        """Injects a fault while no leg runs; later, where it would leave no valid checkpoint."""
        valid = [saved for saved in self.view.checkpoints() if saved.problem is None]
        fault = Fault(kind.name, valid[-1].position if valid else 0, "")
        if len(valid) < 2:
            self._postponed.append(kind)
            return
        try:
            fault.note = kind.inject(self)
        except LookupError:
            self._postponed.append(kind)
            return
        except TimeoutError as error:
            fault.note, fault.survived = str(error), False
        fault.repeated = (fault.position - self.view.newest_valid()) / BATCH
        self._record(fault)

    def _record(self, fault: Fault) -> None:
        self._result.faults.append(fault)
        if fault.survived is None:
            self._waiting.append(fault)
        number = len(self._result.faults)
        self._say(f"{number:3d} at {fault.position:7,} {fault.kind} {fault.topology} {fault.note}")

    def _finish(self) -> None:
        """Lets the run go to its end."""
        for _ in range(NUM_STARTS):
            self._train_to(self._max_samples)
            leg = self.running
            leg.wait(self.limits.finish_s)
            if leg.exit_code == 0:
                return
            self._ended_by_itself(leg)
        raise RuntimeError(f"the run does not end:\n{self._legs[-1].log_tail()}")

    def _verify(self, undisturbed: Outcome | None) -> None:
        outcome = self.view.outcome()
        injected = sum(fault.kind != NEW_TOPOLOGY for fault in self._result.faults)
        checks = [
            Check(
                "all faults were injected",
                injected >= self.plan.num_faults,
                f"{injected} of {self.plan.num_faults}, left out: {[kind.name for kind in self._postponed]}",
            ),
            Check("no leg ended by itself", not self._odd, "; ".join(self._odd)),
            *check_samples([leg.batches() for leg in self._legs], self._max_samples),
            *check_logs(
                outcome.metrics,
                outcome.events,
                dict.fromkeys(("metrics", "events"), self.plan.checkpoint_every),
                self._max_samples,
            ),
        ]
        if undisturbed is not None:
            found = differences(undisturbed, outcome)
            checks.append(Check("the end equals that of an undisturbed run bit for bit", not found, str(found[:8])))
        left = self.view.num_unfinished()
        checks.append(Check("dead writers' leftovers are cleared", left == 0, f"{left} unfinished folders"))
        self._result.checks += checks
        tensors = sum(len(named) for named in outcome.tensors.values())
        self._result.figures |= {"samples": self._max_samples, "tensors": tensors, "stages": len(outcome.ratios)}


def has_begun(leg: Leg) -> bool:
    """Whether it has trained a batch."""
    return leg.first() is not None


def has_reached(leg: Leg, position: int) -> bool:
    """Whether it has trained so far."""
    return leg.position() >= position
