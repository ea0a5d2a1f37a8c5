"""Posterior chains on a GPU as CUDA graphs: one launch runs all kernels of all T steps.

A step of a chain launches about sixty small kernels of a forward and a backward pass. Those of a small generator finish
faster than Python can launch them. The first chain of given shapes runs step by step; the second one is captured as a
graph. A graph reads the weights of the sampling copy in place, and `refresh` overwrites them in place.

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
"""Graphs kept at the same time: those of training, of the held-out images, and of a few other sizes."""


class Chains(NamedTuple):
    """The inputs of chains.

    Attributes:
        z: (B, Z) the start.
        x: (B, C, H, W) the images whose posterior is the target.
        noise: (B, T, Z) standard normal.
    """

    z: Tensor
    x: Tensor
    noise: Tensor


class Ends(NamedTuple):
    """The results of chains.

    Attributes:
        first: the state at the start.
        z: (B, Z) the end.
        trace: of the chain.
    """

    first: ChainState
    z: Tensor
    trace: ChainTrace


class Subject(NamedTuple):
    """The objects into whose memory a graph points.

    Attributes:
        generator: its weights must change in place only.
        prior: an immutable value.
    """

    generator: nn.Module
    prior: RatioSequence


Key = tuple[torch.Size, torch.Size, torch.Size, LangevinSettings]


def run_chains(target: Target, chains: Chains, settings: LangevinSettings, after_step: Callable[[], None]) -> Ends:
    """Runs the chains step by step. The target is not evaluated at the end."""
    first = start(target, chains.z)
    last, trace = run_chain(target, first, chains.noise, settings, after_step, evaluate_end=False)
    return Ends(first, last.z, trace)


class ChainGraphs:
    """Graphs of the chains that are run repeatedly, of one prior and one generator at a time."""

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
        """The result of `run_chains` with the target `target_of(chains.x)`.

        Args:
            subject: generator and prior of the target. A change of either drops all graphs.
            target_of: maps images (B, C, H, W) to the target of their chains.
            chains: the inputs.
            settings: of the chains.
            after_step: called once for every step; with a graph, all calls come after the last step. An exception that
                it raises ends the chain.
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
    """One captured chain. Its inputs and results lie in memory of its own."""

    def __init__(self, target_of: Callable[[Tensor], Target], chains: Chains, settings: LangevinSettings):
        self._inputs = Chains(*(tensor.detach().clone() for tensor in chains))
        self._target = target_of(self._inputs.x)  # keeps the memory that the graph points into
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads, such as NCCL's, continue
            self._ends = run_chains(self._target, self._inputs, settings, lambda: None)
        self._graph = graph
        log.info("posterior chains: a CUDA graph of %d steps of %d rows", settings.num_steps, len(chains.z))

    def replay(self, chains: Chains) -> Ends:
        for own, given in zip(self._inputs, chains, strict=True):
            own.copy_(given)
        self._graph.replay()
        first, z, trace = self._ends
        return Ends(ChainState(*(part.clone() for part in first)), z.clone(), ChainTrace(*(p.clone() for p in trace)))
