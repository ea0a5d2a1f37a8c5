"""Manifest and indexes of shards that others made: plain WebDataset tars, each read once from end to end.

A sample is the members KEY.png, KEY.jpg, KEY.npy or KEY.bin (its image) and KEY.cls, KEY.json or KEY.txt (its label,
if any). Payloads stay where they are: the indexes record their offsets, lengths and checksums. An .npy member is a
raw payload behind a header.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ebmscale.data.decode import Shape
from ebmscale.data.labels import Label, LabelError, are_captions, look_alike, number_labels
from ebmscale.data.manifest import Manifest, SetAbout
from ebmscale.data.names import printable
from ebmscale.data.pack import unfinished_pack
from ebmscale.data.parts import part_of
from ebmscale.data.reindex import Note, reindex
from ebmscale.data.scan import ENCODINGS, ImageMember, Kind, Sample, Scan, scan
from ebmscale.data.set_summary import SetSummary
from ebmscale.data.shard import IndexedShard
from ebmscale.data.shard_index import ShardIndex
from ebmscale.errors import DataError
from ebmscale.storage import Storage

log = logging.getLogger(__name__)

MOST_LEFT_OUT = 0.5  # of all samples; with more there is no set
_ENDINGS = ", ".join(f".{ending}" for ending in ENCODINGS)
_ODD = re.compile(r"[\\\x00-\x1f\x7f\ud800-\udfff]")  # what names of files in a manifest may not hold
_FEW = 10  # classes, which may be as many as samples


@dataclass
class _Found:
    """The sound samples of a shard; labels are as they were written, with their ending."""

    scan: Scan
    keys: list[str] = field(default_factory=list)
    images: list[ImageMember] = field(default_factory=list)
    labels: list[tuple[str, Label | None]] = field(default_factory=list)
    num_left_out: int = 0
    reason: str = ""  # of the first that was left out


def index(
    storage: Storage,
    *,
    image_shape: Shape | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Note = lambda text: None,
) -> Manifest:
    """Read every `*.tar` at an address, and write an index of each and the manifest beside them.

    Of a set that `pack` wrote only what is missing is written (see `reindex`).

    The most frequent kind of image becomes the set's: field of the name, encoding, shape (C, H, W), dtype. Samples
    without an image of it are left out of the manifest, counted, and reported by shard as a warning. A shard's part is
    what the words of its name say (see `parts.part_of`), else train. Hidden files do not count. Keys that occur in
    several shards get the shard's name before them. Texts that are not class names, such as captions, are not taken for
    labels.

    Args:
        storage: where the tars are; the manifest is written there.
        image_shape: of `.bin` members (uint8), which do not contain it; with it the set is made of these.
        progress: called after every shard with (shards read, shards in all).
        note: called at the end for every kind of thing that was left out, such as "3 of 20 samples left out".

    Raises:
        DataError: there are no tars, one of them is truncated or no tar, most samples cannot be used, or a pack is not
            finished there.
        StorageError: the storage fails, or cannot be written.
    """
    if (packed := reindex(storage, note)) is not None:
        return packed
    if (notes := unfinished_pack(storage)) is not None:
        raise DataError(
            f"{storage.url} holds an unfinished pack: run that `ebmscale pack` again, which writes its indexes too, or "
            f"delete the folder {notes} there to index the shards as they are."
        )
    files = [name for name in storage.list() if name.endswith(".tar") and not name.startswith(".")]
    if not files:
        raise DataError(f"{storage.url} has no .tar files; give the folder that holds the WebDataset shards.")
    if odd := next((name for name in files if _ODD.search(name)), None):
        raise DataError(
            f"The name of the shard {printable(odd)!r} at {storage.url} has a backslash, a control character or bytes "
            "that are not UTF-8; rename it."
        )
    scans = []
    for number, file in enumerate(files, 1):
        scans.append(scan(storage, file, image_shape))
        if progress:
            progress(number, len(files))
    kind = _common_kind(storage, scans, image_shape)
    shards = [_sound_samples(storage, one, kind) for one in scans]
    _note_left_out(storage, shards, note)
    classes, labels = _labels(shards, note)
    for alike in look_alike(classes):
        note(alike)
    return _write(storage, shards, kind, classes, labels)


def _common_kind(storage: Storage, scans: list[Scan], image_shape: Shape | None) -> Kind:
    """The kind of most images; the first of several that are as frequent."""
    samples = [(one.file, key, sample) for one in scans for key, sample in one.samples.items()]
    images = [image for _, _, sample in samples for image in sample.images.values() if isinstance(image, ImageMember)]
    kinds = Counter(image.kind for image in images if image_shape is None or image.kind.field.endswith("bin"))
    if not kinds:
        file, key, sample = samples[0] if samples else (scans[0].file, "it", Sample())
        raise DataError(
            f"No sample at {storage.url} can be used (of {file}: {key} {_why_none(sample)}); "
            f"a sample needs a member KEY with one of the endings {_ENDINGS}."
        )
    fields = {name for _, _, sample in samples for name in sample.images}
    if len(fields) > max(2, sum(bool(sample.images) for _, _, sample in samples)):
        _, key, sample = max(samples, key=lambda entry: len(entry[2].images))
        one, other = [*sample.images][:2]
        raise DataError(
            f"The names in {storage.url} have dots, and a key ends at the first dot, so that {key}.{one} and "
            f"{key}.{other} are images of one sample; name the files without dots before the ending."
        )
    return kinds.most_common(1)[0][0]


def _why_none(sample: Sample) -> str:
    reason = next((str(image) for image in sample.images.values()), "has no image")
    return f"{reason}, only {', '.join(f'.{name}' for name in sample.others)}" if sample.others else reason


def _sound_samples(storage: Storage, one: Scan, kind: Kind) -> _Found:
    """A shard's samples of the kind, in the order in which their images lie; others are counted and warned of."""
    found, sound = _Found(one), []
    for key, sample in one.samples.items():
        image = sample.image(kind)
        if isinstance(image, ImageMember):
            sound.append((image.offset, key, image, sample.label()))
            continue
        found.num_left_out += 1
        found.reason = found.reason or f"{key} {image}"
    for _, key, image, (ending, label) in sorted(sound, key=lambda entry: entry[0]):
        found.keys.append(key)
        found.images.append(image)
        found.labels.append((ending, None if isinstance(label, LabelError) else label))
    if found.num_left_out:
        log.warning(
            "%s: %d samples left out, the first because %s",
            printable(storage.url_of(one.file)), found.num_left_out, found.reason,
        )  # fmt: skip
    return found


def _note_left_out(storage: Storage, shards: list[_Found], note: Note) -> None:
    """Report how many images are not in the set; DataError if these are the most."""
    left_out, used = sum(found.num_left_out for found in shards), sum(len(found.keys) for found in shards)
    if left_out > MOST_LEFT_OUT * (left_out + used):
        first = next(found for found in shards if found.num_left_out)
        raise DataError(
            f"{left_out:,} of {left_out + used:,} samples at {storage.url} cannot be used (the first, of "
            f"{first.scan.file}: {first.reason}); a set needs images of one size and type, so pack the images "
            "with `ebmscale pack folder SRC URL --size N`, or write the shards again."
        )
    if left_out:
        note(f"{left_out:,} of {left_out + used:,} samples left out")
    others = sum(len(found.scan.samples[key].images) - 1 for found in shards for key in found.keys)
    if others:
        note(f"{others:,} further images of these samples not used")


def _labels(shards: list[_Found], note: Note) -> tuple[list[str], list[int]]:
    """Classes, and the labels of all samples in order; labels that are not used are reported."""
    labels = [label for found in shards for label in found.labels]
    bad = [
        (key, label)
        for found in shards
        for key in found.keys
        if isinstance(label := found.scan.samples[key].label()[1], LabelError)
    ]
    if bad:
        note(f"{len(bad):,} labels cannot be read (the first, of {bad[0][0]}, {bad[0][1]})")
    texts = [label for ending, label in labels if ending == "txt" and label is not None]
    if are_captions(texts):
        note(f"{len(texts):,} texts (.txt) taken for captions, not for classes")
        labels = [(ending, None if ending == "txt" else label) for ending, label in labels]
    classes, numbers = number_labels(label for _, label in labels)
    num_labelled = len(numbers) - numbers.count(-1)
    different = len({number for number in numbers if number >= 0})
    if different > max(_FEW, num_labelled / 2):
        note(f"nearly every one of {num_labelled:,} labels is a class of its own; check that they are classes")
    return classes, numbers


def _write(storage: Storage, shards: list[_Found], kind: Kind, classes: list[str], labels: list[int]) -> Manifest:
    """Writes the index of each shard, and the manifest."""
    keys = [key for found in shards for key in found.keys]
    ambiguous = len(set(keys)) != len(keys)
    summary, rest = SetSummary(), iter(labels)
    for found in shards:
        if not found.keys:
            continue
        file, images = found.scan.file, found.images
        samples = ShardIndex.of(
            [f"{file.removesuffix('.tar')}/{key}" for key in found.keys] if ambiguous else found.keys,
            [next(rest) for _ in found.keys],
            [image.offset for image in images],
            [image.size for image in images],
            [image.crc32 for image in images],
        )
        shard = IndexedShard.of(file, part_of(file) or "train", found.scan.num_bytes, found.scan.sha256, samples)
        storage.publish(shard.row.index_file, shard.index_data)
        summary.add(shard)
    name = PurePosixPath(storage.url).name or "shards"
    about = SetAbout(name, "webdataset", kind.encoding, kind.shape, kind.dtype, classes)
    manifest = summary.manifest(storage, about)
    manifest.save(storage)
    return manifest
