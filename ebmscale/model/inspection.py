"""Inspects an address: a run, an export or a set of shards."""

from dataclasses import dataclass
from typing import Literal

from ebmscale.data.checks import inspect_shards
from ebmscale.data.decode import decoder
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.soundness import damaged_samples
from ebmscale.errors import DataError, EbmscaleError, StorageError
from ebmscale.model.checkpoint import FOLDER, SavedCheckpoint
from ebmscale.model.checkpoint_reader import CheckpointReader
from ebmscale.model.export import ABOUT_FILE
from ebmscale.model.load import from_checkpoint, open_model
from ebmscale.model.run_folder import CONFIG_FILE, load_run_config
from ebmscale.storage import Storage


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        kind: what the address holds.
        title: one line about it.
        columns: names of the columns of the table.
        rows: the table, with one row for every checkpoint, shard or export. The last column is `ok` or the problem.
        failure: the error with which the command ends; None if everything is valid.
    """

    kind: Literal["run", "export", "shards"]
    title: str
    columns: list[str]
    rows: list[list[str]]
    failure: EbmscaleError | None


def inspect(url: str, verify: bool = False) -> Inspection:
    """Inspects an address.

    Every checksum of a run and of an export is verified. Of a set of shards, the sizes of all files are compared with
    the manifest.

    Args:
        url: the address.
        verify: whether to read a whole set: each shard's sha256, its index, and each of its samples.

    Raises:
        DataError: the address holds no run, no export and no shards.
    """
    storage = Storage.at(url)
    if storage.exists(CONFIG_FILE):
        return _run(storage)
    if storage.exists(ABOUT_FILE):
        return _export(storage)
    if storage.exists(FILE):
        return _shards(storage, verify)
    raise DataError(f"{storage.url} holds no run, no export and no shards; check the address.")


def _run(storage: Storage) -> Inspection:
    config = load_run_config(storage)

    def check(saved: SavedCheckpoint) -> None:
        saved.verify()
        saved.clock()
        from_checkpoint(config, saved)

    found = CheckpointReader(storage).describe(check)
    rows = [
        [c.name, f"{c.samples_seen:,}", str(c.stage or "?"), f"{c.num_bytes / 1e6:.1f} MB", c.problem or "ok"]
        for c in found
    ]
    bad = sum(c.problem is not None for c in found)
    failure = StorageError(f"{bad} of {len(found)} checkpoints are not valid; a resume skips them.") if bad else None
    title = f"run {storage.url}: {len(found)} checkpoint(s) in {FOLDER}/"
    return Inspection("run", title, ["name", "samples seen", "stage", "size", "state"], rows, failure)


def _export(storage: Storage) -> Inspection:
    model = open_model(storage)
    row = [f"{model.samples_seen:,}", str(model.prior.num_stages), "x".join(map(str, model.image_shape)), "ok"]
    return Inspection("export", f"export {storage.url}", ["samples seen", "stages", "image", "state"], [row], None)


def _shards(storage: Storage, verify: bool) -> Inspection:
    manifest = Manifest.load(storage)
    decoder(manifest.encoding, manifest.dtype)
    rows, bad = [], 0
    for number, found in enumerate(inspect_shards(storage, manifest, "sha256" if verify else "size")):
        problem = found.problem or (damaged_samples(storage, manifest, number) if verify else None)
        bad += problem is not None
        rows.append([found.shard, f"{found.num_samples:,}", f"{found.num_bytes / 1e6:.1f} MB", problem or "ok"])
    failure = DataError(f"{bad} of {len(rows)} shards do not agree with the manifest.") if bad else None
    counts = ", ".join(f"{count:,} {part}" for part, count in manifest.counts().items())
    what, shape = manifest.kind_of_samples
    shown = "x".join(map(str, shape))
    title = f"shards {storage.url}: {manifest.name}, {counts}, {what} {shown} {manifest.dtype}, {manifest.encoding}"
    return Inspection("shards", title, ["shard", "samples", "size", "state"], rows, failure)
