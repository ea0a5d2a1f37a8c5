"""CelebA's aligned faces, from the folder of images and the official lists beside it."""

import os
from collections.abc import Iterator
from pathlib import Path

from ebmscale.data.formats.images import ImageFile
from ebmscale.data.formats.source import Record, Source, check_file, local_source
from ebmscale.data.parts import PARTS
from ebmscale.errors import DataError

IMAGES = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
ATTRIBUTES = "list_attr_celeba.txt"
CROP = 140  # side of the square that is kept around the centre of the aligned faces' 178 x 218
SIZE = 64
_PARTS = dict(zip("012", PARTS, strict=True))


def celeba(src: str, *, size: int | None = None, grey: bool = False, attribute: str | None = None) -> Source:
    """A folder with img_align_celeba/, list_eval_partition.txt and, for labels, list_attr_celeba.txt.

    One of the forty attributes can be the label, with the classes "not NAME" (0) and "NAME" (1). Without it there are
    no labels.

    Args:
        src: the folder.
        size: side that the centre square of 140 pixels is resized to; None: 64.
        grey: one channel instead of three.
        attribute: a name in list_attr_celeba.txt, such as Smiling.

    Raises:
        DataError: a list or an image is missing or damaged, or there is no such attribute.
    """
    root = local_source(src)
    images = root / IMAGES
    lists = [root / PARTITION] + ([root / ATTRIBUTES] if attribute else [])
    for path in (*lists, images):
        if not path.exists():
            raise DataError(f"{path} is missing; `ebmscale fetch celeba {root}` says how to get it.")
    names = _read_partition(root / PARTITION)
    there = set(os.listdir(images))
    missing = [name for part in names.values() for name in part if name not in there]
    if missing:
        raise DataError(f"{images} lacks {len(missing)} listed images, first {missing[0]}; unpack the archive again.")
    labels = _read_attribute(root / ATTRIBUTES, attribute) if attribute else None
    unlabelled = [name for part in names.values() for name in part if labels is not None and name not in labels]
    if unlabelled:
        raise DataError(f"{root / ATTRIBUTES} does not list {unlabelled[0]}; get the file again.")
    side = size or SIZE

    def records() -> Iterator[Record]:
        for part, members in names.items():
            for name in members:
                label = -1 if labels is None else labels[name]
                yield Record(f"celeba-{Path(name).stem}", ImageFile(images / name, side, grey, CROP), label, part)

    classes = [f"not {attribute}", attribute] if attribute else []
    counts = {part: len(members) for part, members in names.items() if members}
    files = (*lists, *(images / name for part in names.values() for name in part))
    shape = (1 if grey else 3, side, side)
    return Source("celeba", "celeba", shape, "uint8", classes, counts, records, files=files)


def _read_partition(file: Path) -> dict[str, list[str]]:
    """File names of each part; a line is a name and 0 (train), 1 (validation) or 2 (test)."""
    names: dict[str, list[str]] = {part: [] for part in PARTS}
    for number, line in enumerate(_lines(file), 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in _PARTS or Path(fields[0]).name != fields[0]:
            raise DataError(
                f"Line {number} of {file} is {line[:50]!r}, not a name and a partition; get the file again."
            )
        names[_PARTS[fields[1]]].append(fields[0])
    if not any(names.values()):
        raise DataError(f"{file} is empty; get it again.")
    return names


def _read_attribute(file: Path, attribute: str) -> dict[str, int]:
    """File name to 0 or 1. The file: how many images, the attributes' names, then a name and 1 or -1 for each."""
    lines = _lines(file)
    names = lines[1].split() if len(lines) > 1 else []
    if attribute not in names:
        raise DataError(f"{file} has no attribute {attribute!r}; choose one of {', '.join(names) or 'none'}.")
    column = 1 + names.index(attribute)
    labels = {}
    for line in lines[2:]:
        fields = line.split()
        if len(fields) != 1 + len(names) or fields[column] not in ("1", "-1"):
            raise DataError(f"A line of {file} is {line[:50]!r}, not a name and {len(names)} attributes; get it again.")
        labels[fields[0]] = int(fields[column] == "1")
    return labels


def _lines(file: Path) -> list[str]:
    check_file(file)
    return file.read_text("utf-8-sig", errors="replace").splitlines()
