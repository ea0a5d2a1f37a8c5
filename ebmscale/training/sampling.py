"""The sampling copy: the networks that chains run through, apart from what the engines train.

After each update the weights are refreshed into a plain copy without gradients, in the precision of the chains and
channels-last. So the training state may be sharded in any way while the inner passes cost no communication.
"""

import copy

import torch
from torch import Tensor

from ebmscale.training.engine import Engine
from ebmscale.training.tasks import ImageModel


class SamplingCopy:
    """A copy of an engine's networks for chains.

    Args:
        engine: of the generator.
        template: a module of the same structure; it is copied.
        dtype: precision of the copy's weights and activations.
        device: where chains run.
    """

    def __init__(self, engine: Engine, template: ImageModel, dtype: torch.dtype, device: torch.device):
        self._engine = engine
        self.model = copy.deepcopy(template).to(device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.requires_grad_(False)
        self._targets: dict[str, Tensor] = self.model.state_dict()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes the engine's present weights (collective)."""
        for name, weight in self._engine.working_weights().items():
            self._targets[name].copy_(weight)
