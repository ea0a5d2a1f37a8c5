"""Quality of the reconstructions of a model, and the distance of its samples to the data.

Shapes: B images of a chunk, N of a set, F features, C H W image with pixels in [-1, 1].
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ebmscale.data.chunks import CHUNK_SAMPLES
from ebmscale.errors import DivergenceError
from ebmscale.evaluate.features import Features
from ebmscale.evaluate.frechet import Moments, frechet_distance
from ebmscale.evaluate.images import ImageSet, Progress, chunk_seed
from ebmscale.evaluate.kernel_distance import kernel_distance
from ebmscale.evaluate.manifold import MAX_POINTS, compare_manifolds
from ebmscale.evaluate.reference import Reference, reference_of
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.pixels import to_images, to_pixels
from ebmscale.seeds import derive
from ebmscale.storage import Storage
from ebmscale.world import World

SAMPLES_AT_ONCE = 1000
BEST_PSNR = 100.0  # decibels, for an image that is reconstructed without error

Part = tuple[int, Tensor]  # the index of its first image in the whole set, and its features (B, F)


def measure_reconstruction(model: LatentModel, images: ImageSet, seed: int) -> dict[str, float]:
    """`mse` per pixel in [-1, 1], `mse_unit` in [0, 1], and the mean over images of their PSNR (collective).

    Raises:
        DivergenceError: a reconstruction is not finite.
    """
    sums = torch.zeros(3, dtype=torch.float64)  # squared error, PSNR, images
    for chunk in images.chunks():
        x = to_pixels(chunk.images)
        error = (model.reconstruct(x, chunk_seed(seed, chunk.index)).double() - x.double()).square().flatten(1).mean(1)
        sums += torch.stack([error.sum(), psnr(error).sum(), torch.tensor(float(len(x)))])
    error, decibels, count = images.world.sum(sums).tolist()
    if not math.isfinite(error):
        raise DivergenceError("The model reconstructs images that are not finite; it has diverged, so train it again.")
    return {"mse": error / count, "mse_unit": error / count / 4, "psnr": decibels / count}


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (N,) in decibels from mean squared errors (N,) of pixels in [-1, 1]; at most 100."""
    return (10 * torch.log10(4 / mse)).clamp_max(BEST_PSNR)


def measure_frechet(
    model: LatentModel,
    images: ImageSet,
    features: Features,
    num_samples: int,
    seed: int,
    places: Sequence[Storage] = (),
) -> dict[str, float]:
    """Frechet and kernel distance of samples to images, and precision, recall, density and coverage (collective).

    Samples are rounded to uint8, as images are. They are drawn in parts with a seed each, so that the ranks can divide
    the parts among them. All measures except the Frechet distance use as many samples as images.

    Args:
        model: draws the samples.
        images: the reference.
        features: maps both to features.
        num_samples: how many samples are drawn.
        seed: of the samples.
        places: storages that cache the features of the reference.

    Raises:
        DivergenceError: a sample is not finite.
    """
    world = images.world

    def reference() -> Reference:
        return _collect(_real_features(model, images, features, seed), features.num_features, world)

    real = reference() if model.is_given else reference_of(images, features, places, reference)
    samples = _sample_features(model, features, num_samples, seed, world, images.progress)
    fake = _collect(samples, features.num_features, world)
    most = min(len(real.points), len(fake.points))
    manifold = compare_manifolds(real.points[:most], fake.points[:most], world)
    kernel, name = kernel_distance(real.points[:most], fake.points[:most], world), features.kernel_name
    values = {features.name: frechet_distance(real.moments, fake.moments), name: kernel.value}
    return values | {f"{name}_error": kernel.error} | manifold._asdict() | {"num_manifold": float(most)}


def _real_features(model: LatentModel, images: ImageSet, features: Features, seed: int) -> Iterator[Part]:
    """Of images, or of given latents, where posteriors are drawn from."""
    for chunk in images.chunks():
        x = chunk.images
        if model.is_given:
            x = model.encode(to_pixels(x), chunk_seed(seed, chunk.index))
        yield chunk.index * CHUNK_SAMPLES, features(x)


def _sample_features(
    model: LatentModel, features: Features, num: int, seed: int, world: World, progress: Progress
) -> Iterator[Part]:
    progress(0, num, "samples")
    for index in range(world.rank, -(-num // SAMPLES_AT_ONCE), world.size):
        first = index * SAMPLES_AT_ONCE
        z = model.sample_prior(min(SAMPLES_AT_ONCE, num - first), derive(seed, "evaluate-samples", index))
        samples = z if model.is_given else model.decode(z)
        if not samples.isfinite().all():
            raise DivergenceError("The model draws samples that are not finite; it has diverged, so train it again.")
        yield first, features(samples if model.is_given else to_images(samples))
        progress(min(first + world.size * SAMPLES_AT_ONCE, num), num, "samples")


def _collect(parts: Iterator[Part], num_features: int, world: World) -> Reference:
    """The moments over all ranks, and the first `MAX_POINTS` features (N, F) in their order."""
    moments, kept = Moments(num_features), []
    for first, features in parts:
        moments.add(features)
        if first < MAX_POINTS:
            kept.append((first, features))
    gathered = sorted((part for own in world.gather_objects(kept) for part in own), key=lambda part: part[0])
    return Reference(moments.over(world), torch.cat([features for _, features in gathered])[:MAX_POINTS])
