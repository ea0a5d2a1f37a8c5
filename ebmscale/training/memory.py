"""Where posterior chains of training images ended, so that each goes on there when its image comes again.

Shapes: N training images, M of which are remembered, B rows of this rank, Z latent.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ebmscale.model.pieces import Piece, Span, piece, share_of, whole_spans
from ebmscale.world import World


class LatentMemory:
    """One latent an image, the same on every rank: an image may come to any rank when it comes again.

    The images that it has room for are the first M of the split; chains of the others always start anew.

    Args:
        num_samples: N.
        dim: Z.
        max_bytes: of the latents; M = min(N, max_bytes / 4Z).
        world: whose ranks see the images.

    Attributes:
        z: (M, Z) latents in fp32, in the host's memory.
        known: (M,) whether the image was seen.
    """

    def __init__(self, num_samples: int, dim: int, max_bytes: int, world: World):
        num_kept = min(num_samples, max(max_bytes // (4 * dim), 1))
        self.z = torch.zeros(num_kept, dim)
        self.known = torch.zeros(num_kept, dtype=torch.bool)
        self._world = world

    def recall(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Latents of images, given by index into the split (B,).

        Returns:
            Which of them are known (B,), and the latents (B, Z), where known.
        """
        inside = samples < len(self.z)
        places = torch.where(inside, samples, 0)
        return inside & self.known[places], self.z[places].to(self._world.device)

    def keep(self, samples: Tensor, z: Tensor) -> None:
        """Takes every rank's latents z (B, Z) of images (B,) (collective)."""
        inside = samples < len(self.z)
        mine = torch.cat([samples[inside, None].double(), z.detach().cpu()[inside].double()], 1)
        for part in self._world.gather(mine):
            places = part[:, 0].long()
            self.z[places] = part[:, 1:].float()
            self.known[places] = True

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of both tensors."""
        return {name: tensor.shape for name, tensor in self._tensors().items()}

    def share(self) -> list[Piece]:
        """What this rank writes of them."""
        pieces = [piece(name, tensor) for name, tensor in self._tensors().items()]
        return share_of(pieces, self._world.rank, self._world.size)

    def wanted(self) -> list[Span]:
        """The spans that `restore` needs: all, on every rank."""
        return whole_spans(self.shapes())

    def restore(self, values: Mapping[Span, Tensor]) -> None:
        """Takes what the ranks' shares hold."""
        for span in self.wanted():
            tensor = self._tensors()[span.name]
            tensor.copy_(values[span].view(tensor.shape))

    def _tensors(self) -> dict[str, Tensor]:
        return {"z": self.z, "known": self.known}
