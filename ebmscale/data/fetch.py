"""Download data sets from their official places, check the published checksums, and resume interrupted downloads.

During the download a file is called NAME.part; it gets its name when its checksum is right.
"""

import gzip
import hashlib
import http.client
import io
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from ebmscale.address import Address
from ebmscale.errors import ConfigError, DataError, StorageError
from ebmscale.storage import Storage
from ebmscale.waits import TooSlow

ATTEMPTS = 5  # in a row without a single new byte, before the next place is tried
FIRST_PAUSE_S = 1.0  # doubled after every such attempt
ANSWER_S = 60.0  # without an answer
TIMEOUT_S, LEAST_BYTES = 60.0, 60_000  # fewer bytes than this in this time count as no answer
_READ_BYTES = 1 << 20
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)

Progress = Callable[[str, int, int | None], None]  # file, bytes received, bytes in all if the server says it


class File(NamedTuple):
    """A file to download.

    Attributes:
        name: of the file, below each place and in the folder.
        md5: as published.
        content_md5: of what a .gz file holds: a mirror may have compressed the same content again.
    """

    name: str
    md5: str
    content_md5: str | None = None


class DataSet(NamedTuple):
    """Files and the places that have all of them, in the order in which they are tried."""

    places: tuple[str, ...]
    files: tuple[File, ...]


_IMAGES, _LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"

DATA_SETS: dict[str, DataSet] = {
    "mnist": DataSet(
        ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
        (
            File(f"train-{_IMAGES}", "f68b3c2dcbeaaa9fbdd348bbdebd6873", "6bbc9ace898e44ae57da46a324031adb"),
            File(f"train-{_LABELS}", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            File(f"t10k-{_IMAGES}", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            File(f"t10k-{_LABELS}", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        ),
    ),
    "fashion_mnist": DataSet(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
        (
            File(f"train-{_IMAGES}", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            File(f"train-{_LABELS}", "25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
            File(f"t10k-{_IMAGES}", "bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
            File(f"t10k-{_LABELS}", "bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
        ),
    ),
    "cifar10": DataSet(
        ("https://www.cs.toronto.edu/~kriz",),
        (File("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
    ),
    "svhn": DataSet(
        ("http://ufldl.stanford.edu/housenumbers",),
        (
            File("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            File("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
}
NAMES = (*DATA_SETS, "celeba")


def fetch(
    name: str,
    folder: str | os.PathLike[str],
    *,
    mirror: str | None = None,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Download the missing files of a data set; correct files are kept.

    CelebA cannot be downloaded without agreeing to its licence. Until its files are there, an error says what to do.

    Args:
        name: one of `NAMES`.
        folder: where the files go; made if missing.
        mirror: an address that has the same files, instead of the official places.
        progress: called as bytes arrive.
        sleep: waits between attempts.

    Returns:
        The files, as `pack` wants them.

    Raises:
        ConfigError: there is no such data set, the folder is not on this machine, or the mirror is not an HTTP address.
        DataError: what arrived is not what was published; or CelebA's files are not there.
        StorageError: no place has the file or can be reached, or the folder cannot be written to.
    """
    path = Storage.at(folder).local_path()
    if path is None:
        raise ConfigError(f"{Address(os.fspath(folder))} is not on this machine; files are fetched to a local folder.")
    folder = path
    if name == "celeba":
        return _celeba(folder)
    if name not in DATA_SETS:
        raise ConfigError(f"There is no data set {name!r} to fetch; choose one of {', '.join(NAMES)}.")
    if mirror and not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"The mirror {mirror} must begin with http:// or https://.")
    places = (mirror,) if mirror else DATA_SETS[name].places
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_fetch_file(file, folder, places, progress or _silent, sleep) for file in DATA_SETS[name].files]
    except OSError as error:
        raise StorageError(f"Cannot write to {folder} ({error}); choose another folder.") from error


def _silent(file: str, num_bytes: int, total: int | None) -> None:
    """No progress."""


def _celeba(folder: Path) -> list[Path]:
    needed = [folder / "img_align_celeba", folder / "list_eval_partition.txt"]
    if all(path.exists() for path in needed):
        return needed
    raise DataError(
        "CelebA is for non-commercial research and cannot be downloaded without agreeing to that: read and accept the "
        "agreement at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, download img_align_celeba.zip and "
        f"list_eval_partition.txt there, unpack the first to {needed[0]} and put the second at {needed[1]} "
        "(and list_attr_celeba.txt beside it, for labels)."
    )


def _fetch_file(
    file: File, folder: Path, places: tuple[str, ...], progress: Progress, sleep: Callable[[float], None]
) -> Path:
    """One file from the first place that gives it whole."""
    target, part = folder / file.name, folder / f"{file.name}.part"
    if target.exists() and _is_right(target, file):
        return target
    problem: DataError | StorageError | None = None
    for place in places:
        url = Address.parse(place).below(file.name)
        try:
            _download_right(url, part, file, progress, sleep)
        except (DataError, StorageError) as error:
            problem = problem or error
            continue
        part.replace(target)
        return target
    assert problem is not None, "there is at least one place"
    raise problem


def _download_right(url: Address, part: Path, file: File, progress: Progress, sleep: Callable[[float], None]) -> None:
    """Download until the checksum is right: an outdated partial file may make the first attempt fail."""
    resumed = part.exists()
    if resumed and _is_right(part, file):
        return
    for _ in range(2 if resumed else 1):
        _download(url, part, progress, sleep)
        if _is_right(part, file):
            return
        part.unlink()
    raise DataError(f"{url} is not the published file (md5 {file.md5} was expected); try another --mirror.")


def _download(url: Address, part: Path, progress: Progress, sleep: Callable[[float], None]) -> None:
    """Append to `part` until it is whole; gives up after `ATTEMPTS` attempts in a row without new bytes."""
    failures = 0
    while True:
        before, slow = _size(part), False
        try:
            _receive(url, part, progress)
            return
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # the part is longer than the file
                part.unlink(missing_ok=True)
            elif error.code not in _TRY_AGAIN:
                raise StorageError(
                    f"Cannot download {url} ({reason}); check the address or give a --mirror."
                ) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason, slow = str(error) or type(error).__name__, isinstance(error, TooSlow)
        failures = 0 if _size(part) > before and not slow else failures + 1
        if failures == ATTEMPTS:
            raise StorageError(
                f"Cannot download {url} after {ATTEMPTS} attempts ({reason}); "
                "check the network and run the same command again; it continues where it stopped."
            )
        sleep(FIRST_PAUSE_S * 2 ** max(failures - 1, 0))


def _receive(url: Address, part: Path, progress: Progress) -> None:
    """One request for the bytes that are missing; ConnectionError if the body ends before its announced length."""
    start = _size(part)
    request = urllib.request.Request(url.real, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.build_opener(_RedirectsToHttp).open(request, timeout=ANSWER_S) as answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with part.open("ab" if goes_on else "wb") as out:
            _copy(answer, out, lambda received: progress(part.stem, start + received, total))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"the connection broke off after {_size(part):,} of {total:,} bytes")


class _RedirectsToHttp(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) addresses and to no others."""

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> Any:
        """Refuses other kinds of address with a StorageError."""
        target = headers.get("location") or headers.get("uri") or ""
        if urllib.parse.urlsplit(target).scheme.lower() not in ("", "http", "https"):
            raise StorageError(
                f"Cannot download {Address(req.full_url)}: the server redirects to {Address(target)}, which is not "
                "http(s); give another --mirror."
            )
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _copy(source: http.client.HTTPResponse, target: BinaryIO, received: Callable[[int], None]) -> None:
    """Writes what arrives; `TooSlow` if fewer than `LEAST_BYTES` arrive in `TIMEOUT_S`."""
    num_bytes, since, before = 0, time.monotonic(), 0
    while data := source.read1(_READ_BYTES):
        target.write(data)
        num_bytes += len(data)
        received(num_bytes)
        if time.monotonic() - since > TIMEOUT_S:
            if num_bytes - before < LEAST_BYTES:
                raise TooSlow(f"fewer than {LEAST_BYTES:,} bytes came in {TIMEOUT_S:.0f} s")
            since, before = time.monotonic(), num_bytes


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_right(path: Path, file: File) -> bool:
    """Whether a file's md5, or that of what it holds compressed, is the published one."""
    with path.open("rb") as opened:
        if _md5(opened) == file.md5:
            return True
    if file.content_md5 is None:
        return False
    try:
        with gzip.open(path) as opened:
            return _md5(opened) == file.content_md5
    except (OSError, EOFError, zlib.error):
        return False


def _md5(opened: io.BufferedIOBase) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while data := opened.read(_READ_BYTES):
        digest.update(data)
    return digest.hexdigest()
