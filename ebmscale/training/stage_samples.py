"""Pictures of samples at the end of every stage, by the generator of that time, kept in the run for its report.

    URL/NAME/samples/stage-01-000000012800.png

Shapes: N images, Z latent.
"""

import logging

import torch

from ebmscale.errors import StorageError
from ebmscale.model.image_grid import image_grid
from ebmscale.training.run import Run

log = logging.getLogger(__name__)

FOLDER = "samples"
COLUMNS = 5
TILE_PIXELS = 64  # images are enlarged to about this side


def stage_file(stage: int, samples_seen: int) -> str:
    """The file of the samples of a stage that was frozen at `samples_seen`."""
    return f"{FOLDER}/stage-{stage:02d}-{samples_seen:012d}.png"


@torch.no_grad()
def keep_stage_samples(run: Run, stage: int) -> None:
    """Writes the images of held-out chains of the prior on this rank. If the storage fails, it warns."""
    z = run.stages.latents.pools.held_out.z.flatten(0, -2)[: COLUMNS**2]
    generator = run.sampling.model.generator
    images = generator(z.to(next(generator.parameters()).dtype)).float().cpu()
    picture = image_grid(images, COLUMNS, max(1, TILE_PIXELS // max(images.shape[2:])))
    try:
        run.storage.publish(stage_file(stage, run.samples_seen), picture)
    except StorageError as error:
        log.warning("the samples of stage %d are not kept: %s", stage, error)
