"""Quality of the reconstructions of a model, and the distance of its samples to the data.

Shapes: B images of a chunk, N of a set, F features, C H W image with pixels in [-1, 1].
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebmscale.data.chunks import CHUNK_SAMPLES
from ebmscale.errors import DivergenceError
from ebmscale.evaluate.features import Features
from ebmscale.evaluate.frechet import Moments, frechet_distance
from ebmscale.evaluate.images import ImageSet, Progress, chunk_seed
from ebmscale.evaluate.kernel_distance import kernel_distance
from ebmscale.evaluate.manifold import MAX_POINTS, compare_manifolds
from ebmscale.evaluate.measure import Tensors, in_order
from ebmscale.evaluate.reference import Reference
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.pixels import to_images, to_pixels
from ebmscale.seeds import derive
from ebmscale.world import World

SAMPLES_AT_ONCE = 1000
BEST_PSNR = 100.0  # decibels, for an image that is reconstructed without error
CEILING = "ceiling"
DIVERGED = "The model {} that are not finite; it has diverged, so train it again."

Block = tuple[int, Tensor]  # index in the whole set of the first of some features, and the features (B, F)


@dataclass(frozen=True)
class Reconstruction:
    """`mse` per pixel in [-1, 1], `mse_unit` in [0, 1], and the mean over images of their PSNR; a `measure.Measure`."""

    model: LatentModel
    seed: int

    def part(self, images: ImageSet) -> Tensors:
        """The sums (3,) of squared error and PSNR, and the number of images."""
        sums = torch.zeros(3, dtype=torch.float64)
        for chunk in images.chunks():
            x = to_pixels(chunk.images)
            again = self.model.reconstruct(x, chunk_seed(self.seed, chunk.index))
            error = (again.double() - x.double()).square().flatten(1).mean(1)
            sums += torch.stack([error.sum(), psnr(error).sum(), torch.tensor(float(len(x)))])
        return {"sums": sums}

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """The means over all images.

        Raises:
            DivergenceError: a reconstruction is not finite.
        """
        error, decibels, count = sum(part["sums"] for part in parts).tolist()  # type: ignore[union-attr]
        if not math.isfinite(error):
            raise DivergenceError(DIVERGED.format("reconstructs images"))
        return {"mse": error / count, "mse_unit": error / count / 4, "psnr": decibels / count}


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (N,) in decibels from mean squared errors (N,) of pixels in [-1, 1]; at most 100."""
    return (10 * torch.log10(4 / mse)).clamp_max(BEST_PSNR)


@dataclass(frozen=True)
class Distances:
    """Frechet and kernel distance of samples to images, and precision, recall, density, coverage; a `measure.Measure`.

    Samples are rounded to uint8, as images are. They are drawn in blocks with a seed each, which the ranks divide among
    them. All but the Frechet distance use as many samples as images.

    Attributes:
        model: draws the samples.
        features: maps both to features.
        num_samples: how many samples are drawn.
        seed: of the samples.
        reference: the images' features, if they are known.
        keep: keeps them for the next time, if they were not known.
        training: training images, whose reconstructions are the samples: as if the prior were the distribution of their
            posteriors. The values are then called `ceiling_...`. None: samples of the model.
    """

    model: LatentModel
    features: Features
    num_samples: int
    seed: int
    reference: Reference | None = None
    keep: Callable[[Reference], None] = lambda reference: None
    training: ImageSet | None = None

    def part(self, images: ImageSet) -> Tensors:
        """Moments of the features of both sides, and the first of the features themselves.

        Raises:
            DivergenceError: a sample is not finite.
        """
        found = {} if self.reference is not None else self._summary("real", self._of_images(images))
        if self.training is not None:
            training = replace(self.training, world=images.world, progress=images.progress)
            return found | self._summary("fake", self._of_posteriors(training))
        return found | self._summary("fake", self._of_samples(images.world, images.progress))

    def join(self, parts: Sequence[Tensors], images: ImageSet) -> dict[str, float]:
        """The distances."""
        world, features, real = images.world, self.features, self.reference
        if real is None:
            real = _whole(parts, "real")
            if world.is_first:
                self.keep(real)
        fake = _whole(parts, "fake")
        most = min(len(real.points), len(fake.points))
        manifold = compare_manifolds(real.points[:most], fake.points[:most], world)
        kernel, name = kernel_distance(real.points[:most], fake.points[:most], world), features.kernel_name
        values = {features.name: frechet_distance(real.moments, fake.moments), name: kernel.value}
        values |= {f"{name}_error": kernel.error} | manifold._asdict() | {"num_manifold": float(most)}
        return values if self.training is None else {f"{CEILING}_{key}": value for key, value in values.items()}

    def _of_images(self, images: ImageSet) -> Iterator[Block]:
        """Of images, or of given latents, where posteriors are drawn from."""
        for chunk in images.chunks():
            x = chunk.images
            if self.model.is_given:
                x = self.model.encode(to_pixels(x), chunk_seed(self.seed, chunk.index))
            yield chunk.index * CHUNK_SAMPLES, self.features(x)

    def _of_posteriors(self, training: ImageSet) -> Iterator[Block]:
        """Of so many draws as of samples; of a small set an image has several."""
        for first in range(0, self.num_samples, len(training)):
            for chunk in training.chunks():
                place = first + chunk.index * CHUNK_SAMPLES
                x = to_pixels(chunk.images[: max(self.num_samples - place, 0)])
                if not len(x):
                    continue
                again = self.model.reconstruct(x, chunk_seed(derive(self.seed, CEILING, first), chunk.index))
                if not again.isfinite().all():
                    raise DivergenceError(DIVERGED.format("reconstructs images"))
                yield place, self.features(to_images(again))

    def _of_samples(self, world: World, progress: Progress) -> Iterator[Block]:
        num = self.num_samples
        progress(0, num, "samples")
        for index in range(world.rank, -(-num // SAMPLES_AT_ONCE), world.size):
            first = index * SAMPLES_AT_ONCE
            z = self.model.sample_prior(min(SAMPLES_AT_ONCE, num - first), derive(self.seed, "evaluate-samples", index))
            samples = z if self.model.is_given else self.model.decode(z)
            if not samples.isfinite().all():
                raise DivergenceError(DIVERGED.format("draws samples"))
            yield first, self.features(samples if self.model.is_given else to_images(samples))
            progress(min(first + world.size * SAMPLES_AT_ONCE, num), num, "samples")

    def _summary(self, side: str, blocks: Iterator[Block]) -> Tensors:
        """Moments of all features, and those of the first `MAX_POINTS` rows."""
        moments, rows, kept = Moments(self.features.num_features), [], []
        for first, features in blocks:
            moments.add(features)
            if first < MAX_POINTS:
                rows.append(first + torch.arange(len(features)))
                kept.append(features)
        found = {f"{side}/{name}": value for name, value in moments.tensors().items()}
        if kept:
            found |= {f"{side}/row": torch.cat(rows), f"{side}/points": torch.cat(kept)}
        return found


def _whole(parts: Sequence[Tensors], side: str) -> Reference:
    """The moments over all parts, and the first `MAX_POINTS` features (N, F) in their order."""
    names = ("count", "mean", "scatter")
    moments = Moments.of(*(parts[0][f"{side}/{name}"] for name in names))
    for part in parts[1:]:
        moments.merge(Moments.of(*(part[f"{side}/{name}"] for name in names)))
    return Reference(moments, in_order(parts, f"{side}/points", f"{side}/row")[:MAX_POINTS])
