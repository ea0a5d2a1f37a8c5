"""Writes a file of anomaly scores in Parquet or CSV, with one row for every image: key, class, percentile, all scores.

Shapes: N images.
"""

import csv
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ebmscale.errors import ConfigError, StorageError
from ebmscale.evaluate.anomaly import MAIN_SCORE, ScoredChunk, percentiles, score_chunks
from ebmscale.evaluate.images import ImageSet
from ebmscale.model.latent_model import LatentModel
from ebmscale.storage import Storage

FORMATS = (".parquet", ".csv")

Columns = dict[str, list[Any]]


class _Writer(Protocol):
    def write(self, columns: Columns) -> None: ...
    def close(self) -> None: ...


class _CsvWriter:
    def __init__(self, path: Path):
        self._file = path.open("w", newline="")
        self._rows = csv.writer(self._file)
        self._begun = False

    def write(self, columns: Columns) -> None:
        if not self._begun:
            self._rows.writerow(columns)
        self._begun = True
        self._rows.writerows(zip(*columns.values(), strict=True))

    def close(self) -> None:
        self._file.close()


class _ParquetWriter:
    def __init__(self, path: Path):
        self._path = path
        self._writer: Any = None

    def write(self, columns: Columns) -> None:
        import pyarrow as pa  # noqa: PLC0415 (slow to import)
        import pyarrow.parquet as pq  # noqa: PLC0415

        types = {name: pa.string() if name in ("key", "label") else pa.float64() for name in columns}
        table = pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def write_scores(
    model: LatentModel, images: ImageSet, out: str, seed: int, reference: Tensor | None = None
) -> dict[str, Tensor]:
    """Scores every image, with one chunk of images in memory at a time. Rank 0 writes the file (collective).

    The first score of a row is the one to use, `MAIN_SCORE`. With a reference, the percentile of this score comes
    before it.

    Args:
        model: the model.
        images: the images.
        out: FILE.parquet or FILE.csv, a path or an address of fsspec.
        seed: of the posterior chains.
        reference: (M,) the score `MAIN_SCORE` of other images, for the percentiles.

    Returns:
        Every score (N,) by name, in the order of the images; empty on all ranks but the first.

    Raises:
        ConfigError: the file name has another ending.
        StorageError: the file cannot be written.
        DivergenceError: a score is not finite.
    """
    check_format(out)
    world, classes, found = images.world, images.manifest.classes, []
    chunks = score_chunks(model, images, seed)
    if not world.is_first:
        for _ in _rounds(chunks, images):
            pass
        return {}
    with _published(out) as path:
        writer: _Writer = _CsvWriter(path) if out.endswith(".csv") else _ParquetWriter(path)
        try:
            for chunk in _rounds(chunks, images):
                writer.write(_columns(chunk, classes, reference))
                found.append(chunk.scores)
        finally:
            writer.close()
    return {name: torch.cat([scores[name] for scores in found]) for name in found[0]}


def part_bytes(model: LatentModel, images: ImageSet, folder: Path, seed: int, reference: Tensor | None = None) -> bytes:
    """A Parquet file of the scores of some images, as `write_scores` has them; a chunk at a time is in memory.

    Args:
        model: the model.
        images: those whose chunks count.
        folder: for the file while it grows.
        seed: of the posterior chains.
        reference: (M,) as of `write_scores`.
    """
    path = folder / "part.parquet"
    writer = _ParquetWriter(path)
    try:
        for chunk in score_chunks(model, images, seed):
            writer.write(_columns(chunk, images.manifest.classes, reference))
    finally:
        writer.close()
    return path.read_bytes()


def join_parts(parts: Iterable[bytes], out: str) -> None:
    """Writes the Parquet files of parts as one file, with one part in memory at a time.

    Args:
        parts: in their order.
        out: as of `write_scores`.

    Raises:
        StorageError: the file cannot be written.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 (slow to import)

    with _published(out) as path:
        writer: _Writer = _CsvWriter(path) if out.endswith(".csv") else _ParquetWriter(path)
        try:
            for part in parts:
                writer.write(pq.read_table(BytesIO(part)).to_pydict())
        finally:
            writer.close()


def read_scores(parts: Iterable[bytes], names: Sequence[str] = ()) -> dict[str, Tensor]:
    """The scores (N,) by name in the Parquet files of parts, with one part in memory at a time.

    Args:
        parts: in their order.
        names: of the scores; empty: all.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415 (slow to import)

    found: dict[str, list[Tensor]] = {}
    for part in parts:
        table = pq.read_table(BytesIO(part), columns=list(names) or None)
        for name in table.column_names:
            if name not in ("key", "label", "percentile"):
                found.setdefault(name, []).append(torch.from_numpy(table[name].to_numpy().copy()))
    return {name: torch.cat(values) for name, values in found.items()}


def check_format(out: str) -> None:
    """Checks the ending of a file name.

    Raises:
        ConfigError: it is neither .parquet nor .csv.
    """
    if not out.endswith(FORMATS):
        raise ConfigError(f"--out {out} must end in {' or '.join(FORMATS)}.")


def _rounds(chunks: Iterator[ScoredChunk], images: ImageSet) -> Iterator[ScoredChunk]:
    """The chunks of all ranks in their order. Each round gathers one chunk of every rank (collective)."""
    while True:
        found = [chunk for chunk in images.world.gather_objects(next(chunks, None)) if chunk is not None]
        if not found:
            return
        yield from found


def _columns(chunk: ScoredChunk, classes: list[str], reference: Tensor | None) -> Columns:
    labels = [classes[label] if 0 <= label < len(classes) else None for label in chunk.labels.tolist()]
    columns: Columns = {"key": chunk.keys, "label": labels}
    if reference is not None:
        columns["percentile"] = percentiles(chunk.scores[MAIN_SCORE], reference).tolist()
    columns[MAIN_SCORE] = []  # the score to use comes first
    return columns | {part: values.tolist() for part, values in chunk.scores.items()}


@contextmanager
def _published(out: str) -> Iterator[Path]:
    """A temporary path to write to. Afterwards its file replaces `out` in one step."""
    storage, name = Storage.of_file(out)
    target = storage.local_path(name)
    try:
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        where = tempfile.mkdtemp(prefix=".ebmscale-scores-", dir=target.parent if target is not None else None)
    except OSError as error:
        raise StorageError(f"Cannot write {out} ({error.strerror}); choose another place.") from None
    try:
        path = Path(where) / name
        yield path
        if target is not None:
            os.replace(path, target)
        else:
            storage.publish(name, path.read_bytes())
    except OSError as error:
        raise StorageError(f"Cannot write {out} ({error.strerror}); make room, or choose another place.") from None
    finally:
        shutil.rmtree(where, ignore_errors=True)
