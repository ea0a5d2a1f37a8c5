"""The files of an export: the weights as safetensors, and JSON that describes them. Both have checksums.

Exports of earlier versions have no checksums. All other checks apply to them too.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from ebmscale.config import RunConfig, config_of
from ebmscale.density.prior import POWER
from ebmscale.errors import ConfigError, DamagedError, StorageError
from ebmscale.model.build import build_on_meta
from ebmscale.model.checkpoint import size_and_digest
from ebmscale.model.pieces import check_fit, parse_tensors, shapes_of
from ebmscale.model.run_documents import ExportAbout
from ebmscale.networks.own import OwnNetworkError
from ebmscale.storage import Storage
from ebmscale.stored import as_form, digest, read_document, read_file

EXPORT_VERSION = 1
TENSOR_FILE, ABOUT_FILE = "model.safetensors", "model.json"
NETWORKS, RATIOS = "networks/", "ratios/"  # prefixes of the names of their tensors
HEAD_BYTES = 1 << 16
EXPORT_BYTES = 64 * 2**30  # largest file of weights without a checksum


def write_export(storage: Storage, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes the tensors, and then their description with the version and the checksums.

    Raises:
        ConfigError: another program's files of these names are there.
    """
    _check_own(storage, ABOUT_FILE, b'"format_version"')
    _check_own(storage, TENSOR_FILE, f'"{NETWORKS}'.encode(), f'"{RATIOS}'.encode())
    weights = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    fields = {"format_version": EXPORT_VERSION} | dict(about) | {"files": {TENSOR_FILE: size_and_digest(weights)}}
    fields["sha256"] = digest(fields)
    storage.publish(TENSOR_FILE, weights)
    storage.publish(ABOUT_FILE, json.dumps(fields, indent=1).encode())


def _check_own(storage: Storage, file: str, *marks: bytes) -> None:
    """Refuses a file that is not empty and has none of the marks of an export in its first bytes."""
    size = min(storage.size(file), HEAD_BYTES) if storage.exists(file) else 0
    head = storage.read_range(file, 0, size) if size else b""  # S3 refuses a range of an empty file
    if head and not any(mark in head for mark in marks):
        raise ConfigError(
            f"{storage.url_of(file)} is not of an export, and is not overwritten; move it away or give another folder."
        )


def read_export(storage: Storage) -> tuple[ExportAbout, RunConfig, dict[str, Tensor]]:
    """The description of an export, its configuration, and its tensors. It is checked that the three agree.

    Raises:
        StorageError: the export is of another version, or damaged.
    """
    where = storage.url_of(ABOUT_FILE)
    about = _read_about(storage)
    try:
        config = config_of(about.config, where)
        networks, ratio = build_on_meta(config, about.image_shape)
    except OwnNetworkError:
        raise
    except ConfigError as error:
        raise DamagedError(f"{where} is damaged or of another version of ebmscale: {error}") from None
    tensors, place = _read_tensors(storage, about), storage.url_of(TENSOR_FILE)
    shapes = shapes_of(tensors)
    check_fit(_below(shapes, NETWORKS), shapes_of(networks.state_dict()), place)
    _check_ratios(_below(shapes, RATIOS), about.num_stages, shapes_of(ratio.state_dict()), place)
    return about, config, tensors


def _read_about(storage: Storage) -> ExportAbout:
    where = storage.url_of(ABOUT_FILE)
    fields = read_document(storage, ABOUT_FILE, dict[str, Any], non_finite=True)
    if fields.get("format_version") != EXPORT_VERSION:
        raise StorageError(
            f"{where} has format version {str(fields.get('format_version'))[:20]}, but this ebmscale reads "
            f"{EXPORT_VERSION}; use the ebmscale that wrote it, or export the model again."
        )
    if "sha256" in fields and fields.pop("sha256") != digest(fields):
        raise DamagedError(f"{where} is damaged: its checksum is not that of its content; export the model again.")
    return as_form(fields, ExportAbout, where)


def _read_tensors(storage: Storage, about: ExportAbout) -> dict[str, Tensor]:
    where, known = storage.url_of(TENSOR_FILE), about.files.get(TENSOR_FILE)
    data = read_file(storage, TENSOR_FILE, EXPORT_BYTES if known is None else known.num_bytes)
    if known is not None and hashlib.sha256(data).hexdigest() != known.sha256:
        raise DamagedError(f"{where} is damaged: its checksum is not that in {ABOUT_FILE}; export the model again.")
    tensors = parse_tensors(where, data)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise DamagedError(f"{where} holds weights that are not finite numbers; export another checkpoint.")
    return tensors


def _check_ratios(
    found: Mapping[str, Sequence[int]], num_stages: int | None, expected: Mapping[str, Sequence[int]], where: str
) -> None:
    """Checks the stacked tensors (K, ...) of the ratios against the number of stages and the expected shapes."""
    lengths = {size[0] if len(size) else 0 for size in found.values()}
    if len(lengths) > 1 or lengths == {0} or num_stages not in (None, *(lengths or {0})):
        raise DamagedError(f"{where} holds another number of stages than {ABOUT_FILE} says.")
    if found:
        check_fit({name: size[1:] for name, size in found.items()}, expected, where, {POWER: ()})


def _below(shapes: Mapping[str, Sequence[int]], prefix: str) -> dict[str, Sequence[int]]:
    return {name.removeprefix(prefix): size for name, size in shapes.items() if name.startswith(prefix)}
