"""Any folder of image files; each is decoded when its turn comes.

An image is turned as its EXIF tag says, becomes RGB or grey, is cropped to its centre, and is resized by Pillow's
bicubic filter, which averages when it makes smaller. Shapes: C channels, H height, W width.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ebmscale.data.formats.source import Record, Source, local_source, set_name
from ebmscale.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_PARTS = ("train", "test")


@dataclass(frozen=True)
class ImageFile:
    """An image that is read when it is called: a uint8 array (C, H, W).

    Attributes:
        path: the file.
        size: height and width of the result; None keeps the image's own.
        grey: one channel instead of three.
        crop: side of the square kept around the centre before resizing; None: the largest that fits, with a size.
    """

    path: Path
    size: int | None
    grey: bool
    crop: int | None = None

    def __call__(self) -> np.ndarray:
        """Decode the file; DataError where it is damaged."""
        try:
            with Image.open(self.path) as opened:
                image = ImageOps.exif_transpose(opened).convert("L" if self.grey else "RGB")
        except Exception as error:  # what a damaged image raises has no common class
            raise DataError(
                f"{self.path} is no image that can be read ({error}); delete it or get it again."
            ) from error
        if self.size is not None:
            image = _square(image, self.crop).resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return pixels[None] if self.grey else pixels.transpose(2, 0, 1)


def _square(image: Image.Image, side: int | None) -> Image.Image:
    """The square around the centre; of the whole shorter side if not told."""
    side = side or min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def folder(src: str, *, size: int | None = None, grey: bool = False) -> Source:
    """Every image file below a folder; a sample's class is the first folder on the way to it, if there is one.

    Where the folders at the top are `train` and `test`, these are the parts and the classes lie below them; else all
    is part train. Files whose ending is none of `ENDINGS`, and hidden ones, are passed over and counted. A key is made
    of the path, so that a sample stays in its split when others are added.

    Args:
        src: the folder.
        size: the shorter side becomes this, the rest is cropped around the centre; None: all images are of one size.
        grey: one channel instead of three.

    Raises:
        DataError: no image is there, or an image is damaged.
    """
    root = local_source(src)
    files, num_skipped = _image_files(root)
    if not files:
        raise DataError(f"{root} has no image below it ({num_skipped} other files); give a folder of images.")
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    in_parts = tops == set(_PARTS) and all(len(file.parts) > 1 for file in files)
    samples: dict[str, list[tuple[Path, str | None]]] = {part: [] for part in _PARTS}
    for file in files:
        part, inner = (file.parts[0], file.parts[1:]) if in_parts else ("train", file.parts)
        samples[part].append((file, inner[0] if len(inner) > 1 else None))
    classes = sorted({name for part in samples.values() for _, name in part if name is not None})
    labels = {name: label for label, name in enumerate(classes)} | {None: -1}

    def records() -> Iterator[Record]:
        for part, members in samples.items():
            for file, name in members:
                yield Record(_key(file), ImageFile(root / file, size, grey), labels[name], part)

    shape = ImageFile(root / files[0], size, grey)().shape
    counts = {part: len(members) for part, members in samples.items() if members}
    return Source(set_name(root, "folder"), "folder", shape, "uint8", classes, counts, records, num_skipped)


def _image_files(root: Path) -> tuple[list[Path], int]:
    """Paths below the folder, sorted, and how many files are no images. Links to folders are followed once at most."""
    if not root.is_dir():
        raise DataError(f"{root} is no folder; give a folder of images.")
    found, num_skipped, seen = [], 0, set()
    for place, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        for name in files:
            if name.lower().endswith(ENDINGS) and not name.startswith("."):
                found.append(Path(place, name).relative_to(root))
            else:
                num_skipped += 1
    return sorted(found), num_skipped


def _key(file: Path) -> str:
    """The path in letters that a key may have, and a hash that tells apart what then looks the same."""
    path = file.as_posix()
    readable = re.sub(r"[^A-Za-z0-9]+", "-", file.with_suffix("").as_posix()).strip("-")[-60:]
    return f"{readable}-{hashlib.blake2b(path.encode(), digest_size=6).hexdigest()}"
