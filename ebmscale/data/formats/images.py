"""Any folder of image files; each file is decoded when it is needed.

An image is turned as its EXIF tag says, becomes RGB or grey of 8 bits (see `pixels`), is cropped to its centre, and is
resized by Pillow's bicubic filter, which averages when it reduces. Shapes: C channels, H height, W width.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ebmscale.data.formats.source import Record, Source, check_file, local_source, set_name
from ebmscale.data.labels import look_alike
from ebmscale.data.names import printable
from ebmscale.data.parts import PARTS, parts_of
from ebmscale.data.pixels import channels_first, check_size, damage, to_eight_bits, upright
from ebmscale.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
LOOKED_AT = 64  # files, to find the shape of a set


@dataclass(frozen=True)
class ImageFile:
    """An image file; calling it reads the image as a uint8 array (C, H, W).

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
        """Decode the file; DataError if it is damaged."""
        try:
            check_file(self.path)
            with Image.open(self.path) as opened:
                check_size(opened)
                opened.load()
                image = _plain(upright(opened), self.path).convert("L" if self.grey else "RGB")
        except DataError:
            raise
        except Exception as error:  # what a damaged image raises has no common class
            reason = printable(damage(error))
            raise DataError(
                f"{printable(self.path)} is not an image that can be read ({reason}); delete it or get it again."
            ) from error
        if self.size is not None:
            image = _square(image, self.crop).resize((self.size, self.size), Image.Resampling.BICUBIC)
        return channels_first(np.asarray(image))


def _plain(image: Image.Image, path: Path) -> Image.Image:
    """The image in 8 bits, or the reason why it has none."""
    try:
        return to_eight_bits(image)
    except ValueError as error:
        raise DataError(f"{printable(path)} cannot become a picture of 8 bits: {error}.") from error


def _square(image: Image.Image, side: int | None) -> Image.Image:
    """The square around the centre, of the given side or of the shorter side of the image."""
    side = side or min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def folder(src: str, *, size: int | None = None, grey: bool = False) -> Source:
    """Every image file below a folder; a sample's class is the first folder on the way to it, if there is one.

    If the folders at the top, or those one level below, are the parts of a set (train/, val/, test/ and the like, see
    `parts.parts_of`), images are of these parts, and the class is the first other folder on the way. Otherwise all
    images are of part train. Files whose ending is none of `ENDINGS`, hidden files and links without a target are
    skipped and counted. A key is made of the path, so that a sample stays in its split when others are added.

    Args:
        src: the folder.
        size: the shorter side becomes this, the rest is cropped around the centre; None: all images are of one size.
        grey: one channel instead of three.

    Raises:
        DataError: no image is there, none of the images that were looked at can be read, or the part of some images is
            not known.
    """
    root = local_source(src)
    files, num_skipped, num_links = _image_files(root)
    if not files:
        raise DataError(
            f"{printable(root)} has no image below it ({num_skipped} other files); give a folder of images."
        )
    samples: dict[str, list[tuple[Path, str | None]]] = {part: [] for part in PARTS}
    for file, (part, name) in zip(files, _places(root, files), strict=True):
        samples[part].append((file, name))
    classes = sorted({name for part in samples.values() for _, name in part if name is not None})
    labels = {name: label for label, name in enumerate(classes)} | {None: -1}

    def records() -> Iterator[Record]:
        for part, members in samples.items():
            for file, name in members:
                yield Record(_key(file), ImageFile(root / file, size, grey), labels[name], part)

    return Source(
        set_name(root, "folder"),
        "folder",
        _common_shape([ImageFile(root / file, size, grey) for file in files]),
        "uint8",
        classes,
        {part: len(members) for part, members in samples.items() if members},
        records,
        num_skipped,
        tuple(root / file for file in files),
        (*_of_links(num_links), *look_alike(classes)),
    )


def _of_links(num: int) -> list[str]:
    return [f"{num} link(s) to folders that are in the set already not followed"] if num else []


def _common_shape(files: list[ImageFile]) -> tuple[int, ...]:
    """The most frequent shape (C, H, W) among `LOOKED_AT` files that are spread over all; DataError if none is read."""
    shapes: Counter[tuple[int, ...]] = Counter()
    first_error: DataError | None = None
    for file in files[:: -(-len(files) // LOOKED_AT)]:
        if file.size is not None and shapes:
            break  # all have this shape
        try:
            shapes[file().shape] += 1
        except DataError as error:
            first_error = first_error or error
    if not shapes:
        assert first_error is not None, "there is at least one file"
        raise first_error
    return shapes.most_common(1)[0][0]


def _places(root: Path, files: list[Path]) -> Iterator[tuple[str, str | None]]:
    """Part and class of each image, from the folders on the way to it."""
    for depth in range(2):
        names = {file.parts[depth] for file in files if len(file.parts) > depth + 1}
        parts = parts_of(sorted(names), printable(root))
        if parts is not None and (depth == 0 or set(parts.values()) != {"train"}):
            break
    else:
        yield from (("train", _class(file.parts[:-1])) for file in files)
        return
    astray = next((file for file in files if len(file.parts) <= depth + 1), None)
    if astray is not None:
        raise DataError(
            f"{printable(root / astray)} lies beside the folders {', '.join(map(printable, sorted(parts)[:6]))}, which "
            "are parts of a set; move it into one of them or away."
        )
    num_tops = len({file.parts[0] for file in files})
    for file in files:
        above = file.parts[:depth] if num_tops > 1 else ()  # a folder around all of them is not a class
        yield parts[file.parts[depth]], _class((*above, *file.parts[depth + 1 : -1]))


def _class(folders: tuple[str, ...]) -> str | None:
    return printable(folders[0]) if folders else None


def _image_files(root: Path) -> tuple[list[Path], int, int]:
    """Paths below the folder, sorted; the number of other files, and of links to folders that were met before."""
    if not root.is_dir():
        raise DataError(f"{printable(root)} is not a folder; give a folder of images.")
    found, num_skipped, num_links, seen = [], 0, 0, set()
    for place, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(place) in seen:
            folders.clear()
            num_links += 1
            continue
        seen.add(os.path.realpath(place))
        for name in files:
            # links without a target are not images, and reading a pipe would never end
            if (
                name.lower().endswith(ENDINGS)
                and not name.startswith(".")
                and os.path.isfile(os.path.join(place, name))
            ):
                found.append(Path(place, name).relative_to(root))
            else:
                num_skipped += 1
    return sorted(found), num_skipped, num_links


def _key(file: Path) -> str:
    """The path in the letters that a key may have, and a hash of the path, which makes the key unique."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", file.with_suffix("").as_posix()).strip("-")[-60:]
    path = os.fsencode(file.as_posix())  # also names that are not UTF-8
    return f"{readable}-{hashlib.blake2b(path, digest_size=6).hexdigest()}"
