"""The sampling copy: a copy of the networks through which chains run. The engines train the originals.

After each update the weights are refreshed into a plain copy without gradients, in the precision of the chains and
channels-last. So the training state may be sharded in any way while the inner passes cost no communication. The
generator's copy may take another form than the generator (see `kernels.forms`).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ebmscale.errors import ConfigError
from ebmscale.kernels.batch_inner import BatchInnerGenerator
from ebmscale.kernels.chain_graph import ChainGraphs
from ebmscale.kernels.forms import FormName, form_of
from ebmscale.model.image_model import ImageModel
from ebmscale.model.pieces import Piece, Span, piece, share_of, whole_spans
from ebmscale.training.engine import Engine
from ebmscale.world import World


class SamplingCopy:
    """A copy of an engine's networks for chains.

    Args:
        engine: of the generator.
        template: a module of the same structure; it is copied.
        dtype: precision of the copy's weights and activations.
        device: where chains run.

    Attributes:
        model: the networks; `use` and `refresh` change it.
        form: the generator's.
        graphs: of the chains through it, on a GPU.
    """

    def __init__(self, engine: Engine, template: ImageModel, dtype: torch.dtype, device: torch.device):
        self._engine = engine
        self._plain = copy.deepcopy(template).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._plain.requires_grad_(False)
        self._targets: dict[str, Tensor] = self._plain.state_dict()
        self.model = self._plain
        self.form: FormName = "plain"
        self.graphs = ChainGraphs() if device.type == "cuda" else None
        self.refresh()

    def use(self, form: FormName) -> None:
        """Sets the form of the generator from now on."""
        self.model = ImageModel(form_of(form, self._plain.generator), self._plain.encoder)
        self.form = form

    @contextmanager
    def step_by_step(self) -> Iterator[None]:
        """Inside this context chains run through the plain generator, so that each of its operations can be counted."""
        model, graphs = self.model, self.graphs
        self.model, self.graphs = self._plain, None
        try:
            yield
        finally:
            self.model, self.graphs = model, graphs

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the engine's current weights (collective)."""
        for name, weight in self._engine.working_weights().items():
            self._targets[name].copy_(weight)
        if isinstance(self.model.generator, BatchInnerGenerator):
            self.model.generator.load(self._plain.generator)


class AverageWeights:
    """An exponential moving average of an engine's weights, whole and in fp32 on every rank.

    Args:
        engine: whose weights are averaged.
        world: rank and size of this process.
    """

    def __init__(self, engine: Engine, world: World):
        self._engine, self._world = engine, world
        self._weights = engine.full_weights()

    def update(self, half_lives: float) -> None:
        """Adds the current weights to the average, `half_lives` half-lives after the last call (collective)."""
        for name, weight in self._engine.full_weights().items():
            if weight.is_floating_point():
                self._weights[name].lerp_(weight, 1 - 0.5**half_lives)
            else:
                self._weights[name] = weight

    def shapes(self) -> dict[str, torch.Size]:
        """Every weight's shape."""
        return {name: weight.shape for name, weight in self._weights.items()}

    def check_shapes(self, found: Mapping[str, Sequence[int]]) -> None:
        """Refuses the averages of another network with a ConfigError."""
        if {name: torch.Size(size) for name, size in found.items()} != self.shapes():
            raise ConfigError(
                "The saved averages of the generator's weights belong to another network: use the model settings that "
                "it was trained with."
            )

    def share(self) -> list[Piece]:
        """The share that this rank writes."""
        pieces = [piece(name, weight) for name, weight in self._weights.items()]
        return share_of(pieces, self._world.rank, self._world.size)

    def wanted(self) -> list[Span]:
        """The spans that `restore` needs: the whole tensors, on every rank."""
        return whole_spans(self.shapes())

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """Restores the averages from the shares of all ranks."""
        for span in self.wanted():
            weight = self._weights[span.name]
            weight.copy_(values[span].view(weight.shape))
