"""A page of scores: the most and the least likely pictures of a set, and how its scores lie among held-out images.

Shapes: N images, M images of the reference.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ebmscale.data.chunks import read_samples
from ebmscale.evaluate.anomaly import MAIN_SCORE, percentiles
from ebmscale.evaluate.images import ImageSet
from ebmscale.model.image_grid import image_grid
from ebmscale.model.latent_model import LatentModel
from ebmscale.model.pixels import to_pixels
from ebmscale.report import pictures
from ebmscale.report.pages import Picture, render

PAGE_TEMPLATE = "scores.html"
NUM_SHOWN = 20
TILE_PIXELS = 96
FINE = 500  # with a reference of at least this size, percentiles are shown with a decimal


@dataclass(frozen=True)
class Against:
    """A comparison with a set of normal images.

    Attributes:
        name: of that set.
        scores: (M,) of its images, of the score to use.
        values: `anomaly.detection` of all scores.
    """

    name: str
    scores: Tensor
    values: Mapping[str, float]


def score_page(
    model: LatentModel,
    images: ImageSet,
    scores: Mapping[str, Tensor],
    reference: Tensor | None = None,
    against: Against | None = None,
) -> str:
    """The page.

    Args:
        model: that gave the scores.
        images: that were scored.
        scores: every score (N,) by name, as `score_file.write_scores` returns them.
        reference: (M,) scores of held-out images, of the score to use.
        against: normal images that these are compared with.
    """
    own = scores[MAIN_SCORE]
    order = own.argsort(stable=True)
    shares = percentiles(own, reference) if reference is not None else None
    sides = {images.manifest.name: own}
    if against is not None:
        sides[against.name] = against.scores
    elif reference is not None:
        sides["held-out"] = reference
    chart = pictures.data_uri(pictures.histogram(sides, f"{MAIN_SCORE} (nats)"), "image/svg+xml")
    if shares is None:
        notes = [f"{score:,.1f}" for score in own.tolist()]
    else:
        places = 1 if reference is not None and len(reference) >= FINE else 0
        notes = [f"{share:.{places}f} %" for share in shares.tolist()]
    least = _tiles(images, order.flip(0)[:NUM_SHOWN], notes, model.shows_images)
    most = _tiles(images, order[:NUM_SHOWN], notes, model.shows_images)
    return render(
        PAGE_TEMPLATE,
        name=f"Scores of {images.manifest.name}",
        data=images.manifest.name,
        run=model.config.run.name,
        num=len(own),
        samples="images" if model.shows_images else "latents" if model.is_given else "samples",
        score=MAIN_SCORE,
        percentiles=shares is not None,
        num_reference=f"{len(reference):,}" if reference is not None else "",
        against=against.name if against else "",
        chance=f"{against.values['prevalence']:.3f}" if against else "",
        detections=_detections(against) if against else [],
        chart=Picture(chart, "Scores", "the outermost bars hold the lowest and the highest 0.5 %"),
        groups=[(f"The {len(least)} least likely", least), (f"The {len(most)} most likely", most)],
    )


def _detections(against: Against) -> list[dict[str, str]]:
    """A row for every score, the best first."""
    names = [name.removeprefix("auroc_") for name in against.values if name.startswith("auroc_")]
    names.sort(key=lambda name: -against.values[f"auroc_{name}"])
    found = against.values
    return [
        {"name": name, "auroc": f"{found[f'auroc_{name}']:.3f}", "auprc": f"{found[f'auprc_{name}']:.3f}"}
        for name in names
    ]


def _tiles(images: ImageSet, places: Tensor, notes: list[str], images_shown: bool) -> list[Picture]:
    """The images at these places, each with its key and with the note at its place; without a picture of latents."""
    found = images.selection.find(places.numpy())
    if not images_shown:
        return [Picture("", notes[place], key) for place, key in zip(places.tolist(), found.texts(), strict=True)]
    shown = read_samples(images.storage, images.manifest, found)
    scale = max(1, TILE_PIXELS // max(shown.shape[2:]))
    tiles = []
    for place, key, image in zip(places.tolist(), found.texts(), shown, strict=True):
        picture = image_grid(to_pixels(image[None]), 1, scale)
        tiles.append(Picture(pictures.data_uri(picture, "image/png"), notes[place], key))
    return tiles
