"""Pictures of samples at the end of every stage, by the generator of that time, kept in the run for its report.

    URL/NAME/samples/stage-01-000000012800.png

Shapes: N images, Z latent.
"""

import torch

from ebmscale.model.image_grid import image_grid
from ebmscale.networks import weight_of
from ebmscale.training.run import Run

FOLDER = "samples"
COLUMNS = 5
TILE_PIXELS = 64  # images are enlarged to about this side


def stage_file(stage: int, samples_seen: int) -> str:
    """The file of the samples of a stage that was frozen at `samples_seen`."""
    return f"{FOLDER}/stage-{stage:02d}-{samples_seen:012d}.png"


@torch.no_grad()
def stage_picture(run: Run) -> bytes:
    """A PNG of the generator's images at samples of the prior on this rank."""
    z = run.stages.shown(COLUMNS**2)
    generator = run.sampling.model.generator
    images = generator(z.to(weight_of(generator).dtype)).float().cpu()
    return image_grid(images, COLUMNS, max(1, TILE_PIXELS // max(images.shape[2:])))
