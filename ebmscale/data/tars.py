"""The samples of a WebDataset tar that anyone wrote, in one pass from its first byte to its last.

A sample is consecutive members with one key, KEY.ENDING; the key ends at the first dot of the file's name.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from ebmscale.storage import Storage

BLOCK_BYTES = 16 << 20  # of a tar, in memory at a time
LABELS = ("cls", "json", "txt")
LABEL_FIELDS = ("cls", "label", "class")  # of a JSON label, the first that is there


@dataclass
class TarSample:
    """What the members of one key hold.

    Attributes:
        key: with the folders before it.
        ending: of the image's member; None where there is no image.
        payload: that member's content,
        offset: and the byte of the tar at which it begins.
        label: as it was written; None where there is none.
    """

    key: str
    ending: str | None = None
    payload: bytes = b""
    offset: int = 0
    label: str | int | None = None


class SequentialFile:
    """A file read once from its beginning, block by block, with its checksum.

    Attributes:
        position: bytes read from the storage so far.
        digest: their sha256.
    """

    def __init__(self, storage: Storage, file: str):
        self.position = 0
        self.digest = hashlib.sha256()
        self._storage = storage
        self._file = file
        self._size = storage.size(file)
        self._block = b""
        self._used = 0

    def read(self, length: int) -> bytes:
        """Up to `length` bytes; fewer at a block's or the file's end, none after it."""
        parts = []
        while length:
            if self._used == len(self._block):
                want = min(BLOCK_BYTES, self._size - self.position)
                self._block, self._used = (
                    (self._storage.read_range(self._file, self.position, want) if want else b""),
                    0,
                )
                if not self._block:
                    break
                self.digest.update(self._block)
                self.position += len(self._block)
            part = self._block[self._used : self._used + length]
            self._used += len(part)
            length -= len(part)
            parts.append(part)
        return b"".join(parts)

    def read_to_end(self) -> None:
        """What the tar's reader left."""
        while self.read(BLOCK_BYTES):
            pass


def tar_samples(source: SequentialFile, images: set[str]) -> Iterator[TarSample]:
    """The samples of a tar; `images` are the endings of images.

    Raises:
        tarfile.TarError: it is truncated, or no tar.
    """
    sample: TarSample | None = None
    # tarfile takes what has a `read` for a file
    with tarfile.open(fileobj=source, mode="r|", bufsize=tarfile.BLOCKSIZE * 128) as tar:  # type: ignore[call-overload]
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            if not member.isreg() or not stem or not ending:
                continue
            key = f"{folder}/{stem}" if folder else stem
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = TarSample(key)
            _take(sample, ending.lower(), tar, member, images)
    if sample is not None:
        yield sample


def _take(sample: TarSample, ending: str, tar: tarfile.TarFile, member: tarfile.TarInfo, images: set[str]) -> None:
    """A member's content into its sample, where it is the image or the label."""
    if ending not in LABELS and (ending not in images or sample.ending is not None):
        return
    file = tar.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name} ends early")
    if ending in LABELS:
        label = _label(ending, content)
        sample.label = label if label is not None else sample.label
    else:
        sample.ending, sample.payload, sample.offset = ending, content, member.offset_data


def _label(ending: str, content: bytes) -> str | int | None:
    """A label as a number or a name; None where there is none to be found."""
    text = content.decode("utf-8", "replace").strip()
    if ending != "json":
        return int(text) if text.isascii() and text.isdigit() else text or None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if isinstance(value, dict):
        value = next((value[name] for name in LABEL_FIELDS if name in value), None)
    return value if isinstance(value, str | int) and not isinstance(value, bool) else None
