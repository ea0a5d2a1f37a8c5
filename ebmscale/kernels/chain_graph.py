"""Posterior chains on a GPU as CUDA graphs: all T steps, and every kernel of each, are one launch.

A step of a chain is some sixty small kernels of a forward and a backward pass; a small generator's finish sooner than
Python can launch them. A graph is captured when a chain of the same shapes comes the second time; whatever comes once
runs as it is written. It reads the sampling copy's weights where they lie, which `refresh` overwrites in place.

Shapes: B rows, Z latent, T steps, C H W image.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ebmscale.density.langevin import ChainState, ChainTrace, LangevinSettings, Target, run_chain, start
from ebmscale.density.prior import RatioSequence

log = logging.getLogger(__name__)

MOST_GRAPHS = 4
"""Graphs kept at once: training's chains, the held-out images' and a few of odd sizes."""


class Chains(NamedTuple):
    """Where chains start, and what moves them.

    Attributes:
        z: (B, Z) the start.
        x: (B, C, H, W) the images whose posterior they follow.
        noise: (B, T, Z) standard normal.
    """

    z: Tensor
    x: Tensor
    noise: Tensor


class Ends(NamedTuple):
    """What chains gave.

    Attributes:
        first: the state at the start.
        z: (B, Z) the end.
        trace: of the chain.
    """

    first: ChainState
    z: Tensor
    trace: ChainTrace


class Subject(NamedTuple):
    """What a graph holds pointers into: networks whose weights change only in place, and the prior, a value."""

    generator: nn.Module
    prior: RatioSequence


Key = tuple[torch.Size, torch.Size, torch.Size, LangevinSettings]


def run_chains(target: Target, chains: Chains, settings: LangevinSettings, after_step: Callable[[], None]) -> Ends:
    """The chains, step by step; the end is not evaluated."""
    first = start(target, chains.z)
    last, trace = run_chain(target, first, chains.noise, settings, after_step, evaluate_end=False)
    return Ends(first, last.z, trace)


class ChainGraphs:
    """Graphs of the chains that come again; for one prior and one generator at a time."""

    def __init__(self) -> None:
        self._subject: Subject | None = None
        self._met: set[Key] = set()
        self._graphs: dict[Key, _Graph] = {}
        self._can_capture = True

    def run(
        self,
        subject: Subject,
        target_of: Callable[[Tensor], Target],
        chains: Chains,
        settings: LangevinSettings,
        after_step: Callable[[], None],
    ) -> Ends:
        """What `run_chains` gives under `target_of(chains.x)`.

        Args:
            subject: what the target is made of, apart from the images.
            target_of: from images to the chains' target.
            chains: where they start.
            settings: of the chains.
            after_step: called as often as there are steps, after a graph's last one; what it raises ends the chain.
        """
        if self._subject is None or any(old is not new for old, new in zip(self._subject, subject, strict=True)):
            self._subject, self._met, self._graphs = subject, set(), {}
        key = (chains.z.shape, chains.x.shape, chains.noise.shape, settings)
        if key in self._met and key not in self._graphs and len(self._graphs) < MOST_GRAPHS and self._can_capture:
            self._capture(key, target_of, chains, settings)
        if key not in self._graphs:
            self._met.add(key)
            return run_chains(target_of(chains.x), chains, settings, after_step)
        ends = self._graphs[key].replay(chains)
        for _ in range(settings.num_steps):
            after_step()
        return ends

    def _capture(
        self, key: Key, target_of: Callable[[Tensor], Target], chains: Chains, settings: LangevinSettings
    ) -> None:
        try:
            self._graphs[key] = _Graph(target_of, chains, settings)
        except RuntimeError as error:  # some operation of the target cannot be captured
            self._can_capture = False
            log.warning("posterior chains: step by step; a CUDA graph of them cannot be captured (%s)", error)


class _Graph:
    """One captured chain: it reads and writes memory of its own."""

    def __init__(self, target_of: Callable[[Tensor], Target], chains: Chains, settings: LangevinSettings):
        self._inputs = Chains(*(tensor.detach().clone() for tensor in chains))
        self._target = target_of(self._inputs.x)  # holds what the graph points into
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads, of NCCL say, go on
            self._ends = run_chains(self._target, self._inputs, settings, lambda: None)
        self._graph = graph
        log.info("posterior chains: a CUDA graph of %d steps of %d rows", settings.num_steps, len(chains.z))

    def replay(self, chains: Chains) -> Ends:
        for own, given in zip(self._inputs, chains, strict=True):
            own.copy_(given)
        self._graph.replay()
        first, z, trace = self._ends
        return Ends(ChainState(*(part.clone() for part in first)), z.clone(), ChainTrace(*(p.clone() for p in trace)))
