"""The kinds of faults.

Those that strike while the run trains either end its leg or pass; the others come while it is down.
"""

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tests.faulty_proxy import Moment

if TYPE_CHECKING:
    from tests.chaos.campaign import Campaign

GRACE_S = 5.0
PART = r"/checkpoints/[^/?]+/[^/?]*\.safetensors"
NAME = re.compile(r"checkpoints/(\d{12})-")
MANIFEST = r"/checkpoints/[^/?]+/manifest\.json"


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: as the table has it.
        when: whether it ends the leg that is training, passes, or comes while no leg is running.
        inject: does it; says what was done.
    """

    name: str
    when: Literal["ends", "passes", "down"]
    inject: Callable[["Campaign"], str]


def _kill_one(campaign: "Campaign") -> str:
    leg = campaign.running
    time.sleep(campaign.chance.uniform(0, 0.5))
    rank, pid = campaign.chance.choice(list(leg.ranks().items()))
    leg.send(signal.SIGKILL, [pid])
    ended = leg.wait(campaign.limits.end_s)
    codes = leg.rank_codes()
    leg.kill()
    return f"rank {rank}; the others {f'ended by themselves, codes {codes}' if ended else 'had to be killed'}"


def _kill_all(campaign: "Campaign") -> str:
    time.sleep(campaign.chance.uniform(0, 0.5))
    campaign.running.kill()
    return ""


def _kill_at(method: str, pattern: str, moment: Moment) -> Callable[["Campaign"], str]:
    """Kills all ranks at a moment of a request, which then reaches the server in half or not at all."""

    def inject(campaign: "Campaign") -> str:
        leg = campaign.running
        held = campaign.proxy.hold(method, pattern, moment)
        happened = leg.wait_until(held.reached.is_set, campaign.limits.step_s)
        leg.kill()
        held.release(drop=True)
        if not happened:
            raise TimeoutError(f"no {method} of {pattern} came")
        return campaign.short(held.path)

    return inject


def _kill_in_restore(campaign: "Campaign") -> str:
    """A start that is killed while it reads its checkpoint."""
    held = campaign.proxy.hold("GET", PART, "end")
    leg = campaign.start_leg()
    happened = leg.wait_until(held.reached.is_set, campaign.limits.start_s)
    leg.kill()
    held.release(drop=True)
    if not happened:
        raise TimeoutError("no part of a checkpoint was read")
    return campaign.short(held.path)


def _stop(campaign: "Campaign") -> str:
    """A stop with some seconds of grace: to one rank or to all, and to torchrun."""
    leg, chance = campaign.running, campaign.chance
    time.sleep(chance.uniform(0, 0.5))
    number = chance.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    ranks = leg.ranks()
    everyone = number == signal.SIGTERM and chance.random() < 0.5
    one = chance.choice(list(ranks))
    leg.send(number, leg.members() if everyone else [ranks[one]])
    in_time = leg.wait_until(lambda: not leg.ranks(), GRACE_S)
    leg.kill()
    codes = leg.rank_codes()
    campaign.saved_at_end = set(codes) == set(ranks) and set(codes.values()) == {130}
    told = "everyone" if everyone else f"rank {one}"
    if any(code != 130 for code in codes.values()):
        raise AssertionError(f"{number.name} to {told}: exit codes {codes} and not 130")
    return f"{number.name} to {told}: {'ended in time' if in_time else 'killed after the grace'}, codes {codes}"


def _gateway(seconds: Callable[["Campaign"], float]) -> Callable[["Campaign"], str]:
    def inject(campaign: "Campaign") -> str:
        away = seconds(campaign)
        begin = time.monotonic()
        campaign.server.kill_gateway()
        try:
            campaign.running.wait_until(lambda: time.monotonic() - begin > away, away + 1)
            if not campaign.running.is_running:
                campaign.running.wait(campaign.limits.end_s)
        finally:
            campaign.server.start_gateway()
        return f"away for {time.monotonic() - begin:.1f} s"

    return inject


def _busy(campaign: "Campaign") -> str:
    before, seconds = campaign.proxy.refused, campaign.chance.uniform(1.0, 3.0)
    for share in (1.0, 0.5):
        campaign.proxy.busy = share
        time.sleep(seconds / 2)
    campaign.proxy.busy = 0.0
    return f"{campaign.proxy.refused - before} requests in {seconds:.1f} s"


def _bad_line(campaign: "Campaign") -> str:
    """Answers cut short, connections closed with and without effect, delays."""
    proxy = campaign.proxy
    before, seconds = proxy.cut_short + proxy.resets, campaign.chance.uniform(2.0, 4.0)
    proxy.cut, proxy.reset, proxy.delay_s = 0.2, 0.3, 0.3
    time.sleep(seconds)
    proxy.cut = proxy.reset = proxy.delay_s = 0.0
    return f"{proxy.cut_short + proxy.resets - before} requests in {seconds:.1f} s"


def _damage(how: Literal["truncate", "flip", "remove"]) -> Callable[["Campaign"], str]:
    """Damages one file of the newest valid checkpoint."""

    def inject(campaign: "Campaign") -> str:
        saved = [one for one in campaign.view.checkpoints() if one.problem is None][-1]
        return getattr(campaign.view, how)(campaign.chance.choice(saved.files), campaign.chance)

    return inject


def _damage_ratio(campaign: "Campaign") -> str:
    saved = [one for one in campaign.view.checkpoints() if one.problem is None][-1]
    place = campaign.view.ratio_to_damage(saved, campaign.chance)
    if place is None:
        raise LookupError("no frozen ratio is there twice")
    how = campaign.chance.choice([campaign.view.truncate, campaign.view.flip, campaign.view.remove])
    return how(place, campaign.chance)


def _late_newest(campaign: "Campaign") -> str:
    """The newest valid checkpoint is missing from the next listings, at the start and perhaps for longer."""
    saved = [one for one in campaign.view.checkpoints() if one.problem is None][-1]
    number, name = campaign.chance.randint(2, 40), saved.folder.rpartition("/")[2]
    campaign.proxy.late = lambda key: name in key
    campaign.proxy.num_late = number
    return f"{name} for {number} listings"


def _late_next(campaign: "Campaign") -> str:
    """What is saved from now on is missing from the next listings."""
    number, newest = campaign.chance.randint(4, 20), campaign.view.newest_finished()

    def is_new(key: str) -> bool:
        found = NAME.search(key)
        return found is not None and int(found[1]) > newest

    campaign.proxy.late = is_new
    campaign.proxy.num_late = number
    return f"from {newest:,} on for {number} listings"


def _rival(campaign: "Campaign") -> str:
    """The same command a second time: it is refused, and trains nothing."""
    rival = campaign.start_rival()
    try:
        if not rival.wait(campaign.limits.start_s):
            raise TimeoutError("the second writer does not end")
        codes = set(rival.rank_codes().values())
        if codes != {4} or rival.batches() or "is being written by process" not in rival.log_tail(100):
            raise AssertionError(f"the second writer ended with {codes}:\n{rival.log_tail()}")
    finally:
        rival.kill()
    return "refused"


def _taken_over(campaign: "Campaign") -> str:
    """A claim from another machine, as of one that took this one for dead: the run stops, and saves no more."""
    leg = campaign.running
    number = campaign.view.claim_elsewhere()
    if not leg.wait(campaign.limits.step_s):
        raise TimeoutError("the run goes on after it was taken over")
    codes, kept = set(leg.rank_codes().values()), campaign.view.newest_finished()
    if codes != {4} or "was taken over by process 1 of somebody on elsewhere" not in leg.log_tail(100):
        raise AssertionError(f"the run ended with {codes}:\n{leg.log_tail()}")
    return f"claim {number}, {kept:,} kept"


LONG_OUTAGE = "server killed, away for long"
NEW_TOPOLOGY = "another topology at a restart"
KINDS = (
    Kind("kill -9 of one rank", "ends", _kill_one),
    Kind("kill -9 of all ranks", "ends", _kill_all),
    Kind("kill -9 in mid-upload", "ends", _kill_at("PUT", PART, "middle")),
    Kind("kill -9 between parts and manifest", "ends", _kill_at("PUT", MANIFEST, "begin")),
    Kind("kill -9 after the manifest, unanswered", "ends", _kill_at("PUT", MANIFEST, "end")),
    Kind("kill -9 while old checkpoints are deleted", "ends", _kill_at("DELETE", MANIFEST, "end")),
    Kind("stop signal, 5 s of grace", "ends", _stop),
    Kind("taken over from another machine", "ends", _taken_over),
    Kind("a second writer", "passes", _rival),
    Kind("new checkpoints listed late", "passes", _late_next),
    Kind("server killed, back in seconds", "passes", _gateway(lambda c: c.chance.uniform(0.5, 2.5))),
    Kind(LONG_OUTAGE, "passes", _gateway(lambda c: c.limits.outage_s)),
    Kind("burst of 503", "passes", _busy),
    Kind("connections reset, answers cut and late", "passes", _bad_line),
    Kind("kill -9 while restoring", "down", _kill_in_restore),
    Kind("newest checkpoint listed late", "down", _late_newest),
    Kind("newest checkpoint: file truncated", "down", _damage("truncate")),
    Kind("newest checkpoint: bit flipped", "down", _damage("flip")),
    Kind("newest checkpoint: file lost", "down", _damage("remove")),
    Kind("frozen ratio damaged", "down", _damage_ratio),
)
