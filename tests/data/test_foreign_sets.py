"""Sets that anyone may have written: every reader gives a result or one sentence, and no more memory than is sane."""

import gzip
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ebmscale.data.checks import inspect_shards, verify
from ebmscale.data.chunks import read_split
from ebmscale.data.decode import decoder
from ebmscale.data.formats import open_source
from ebmscale.data.index import index
from ebmscale.data.manifest import FILE, Manifest
from ebmscale.data.pack import pack
from ebmscale.data.soundness import damaged_samples
from ebmscale.errors import DataError
from ebmscale.storage import Storage
from tests.foreign import FEW, damaged, documents, result_or_error


@pytest.fixture(scope="module")
def packed(tmp_path_factory, make_source):
    """A small packed set and its manifest as plain values."""
    storage = Storage.at(tmp_path_factory.mktemp("sets") / "toy")
    pack(make_source(num_train=8), storage, shard_samples=4)
    return storage, json.loads(storage.read_text(FILE))


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A set with a manifest of version 1, and that manifest as plain values."""
    folder = tmp_path_factory.mktemp("sets") / "old"
    shutil.copytree(Path(__file__).parents[1] / "fixtures" / "shards_1" / "set", folder)
    return Storage.at(folder), json.loads((folder / FILE).read_text())


def check(storage):
    """What `inspect` does with a set."""
    manifest = Manifest.load(storage)
    decoder(manifest.encoding, manifest.dtype)
    found = [
        one.problem or damaged_samples(storage, manifest, i) for i, one in enumerate(inspect_shards(storage, manifest))
    ]
    return next((problem for problem in found if problem), None)


@FEW
@given(data=st.data())
def test_any_manifest_is_read_or_refused(packed, data):
    storage, sound = packed
    storage.publish(FILE, json.dumps(data.draw(documents(sound))).encode())
    result_or_error(lambda: check(storage))


@FEW
@given(data=st.data())
def test_any_manifest_of_version_1_is_read_or_refused(old, data):
    storage, sound = old
    storage.publish(FILE, json.dumps(data.draw(documents(sound))).encode())
    result_or_error(lambda: check(storage))


@FEW
@given(data=st.data())
def test_any_index_is_read_or_refused(packed, data):
    storage, sound = packed
    storage.publish(FILE, json.dumps(sound).encode())
    name = "toy-train-000000.index.npz"
    whole = storage.read_bytes(name)
    try:
        storage.publish(name, data.draw(damaged(whole)))
        result_or_error(lambda: (check(storage), read_split(storage, Manifest.load(storage), "train")))
    finally:
        storage.publish(name, whole)


def column(name, value):
    return lambda fields: fields["shards"][name].__setitem__(0, value)


def low(place, value):
    return lambda fields: fields["lowest"]["train"][0].__setitem__(place, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (column("file", 7), "file.0: input should be a valid string"),
        (column("file", "../toy.tar"), "file.0: string should match"),
        (column("file", "toy-train-000001.tar"), "lists a shard twice"),
        (column("num_samples", 10**30), "num_samples.0"),
        (column("num_samples", 2**60), "samples"),
        (column("num_unlabelled", 5), "counts more samples than its 4"),
        (column("sha256", "x"), "sha256.0"),
        (column("index_bytes", 2**40), "the index of shard toy-train-000000.tar has"),
        (column("below", [1]), "below.0"),
        (lambda fields: fields["shards"]["part"].pop(), "columns of shards differ in length"),
        (lambda fields: fields["shards"].pop("part"), "part: field required"),
        (lambda fields: [values.clear() for values in fields["shards"].values()], "lists no shards"),
        (lambda fields: fields.update(fractions=[0.3]), "other fractions"),
        (low(0, 9), "is not in part train"),
        (low(1, 9), "does not fit its shard"),
        (low(4, 9), "does not fit its shard"),
        (low(5, 2**40), "lies beyond its shard"),
        (low(7, -1), "lowest"),
        (low(3, 1.5), "lowest"),
    ],
)
def test_values_of_another_type_sign_or_size_are_refused(packed, change, words):
    storage, sound = packed
    fields = json.loads(json.dumps(sound))
    change(fields)
    storage.publish(FILE, json.dumps(fields).encode())
    with pytest.raises(DataError) as caught:
        Manifest.load(storage)
    assert words in str(caught.value)


def first(name, value):
    return lambda fields: fields["shards"][0][name].__setitem__(0, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda fields: fields["shards"][0].update(file=7), "file: input should be a valid string"),
        (lambda fields: fields["shards"][0].update(file="../toy.tar"), "file: string should match"),
        (first("keys", None), "keys.0: input should be a valid string"),
        (first("labels", "x"), "labels.0: input should be a valid integer"),
        (first("labels", 99), "has label 99 where the set has"),
        (first("labels", 300_000_000), "labels.0: input should be less than"),
        (first("offsets", -1), "offsets.0: input should be greater"),
        (first("sizes", 10**30), "sizes.0"),
        (first("sizes", 1), "samples of another size"),
        (first("crc32", "a"), "crc32.0"),
        (lambda fields: fields.update(image_shape=[1, 10**6, 10**6]), "and at most"),
        (lambda fields: fields.update(encoding=["raw"]), "encoding: input should be a valid string"),
        (lambda fields: fields.update(dtype="object"), "not a type of numbers"),
        (lambda fields: fields.update(shards=["a"]), "not a list of shards"),
        (lambda fields: fields.update(shards=[]), "lists no shards"),
        (lambda fields: fields.update(shards=fields["shards"] * 2), "lists a shard twice"),
    ],
)
def test_such_values_of_version_1_are_refused(old, change, words):
    storage, sound = old
    fields = json.loads(json.dumps(sound))
    change(fields)
    storage.publish(FILE, json.dumps(fields).encode())
    with pytest.raises(DataError) as caught:
        Manifest.load(storage)
    assert words in str(caught.value)


def test_checksums_of_nothing_are_found_by_inspect(old):
    storage, sound = old
    fields = json.loads(json.dumps(sound))
    fields["shards"][0]["crc32"] = [0] * 16
    storage.publish(FILE, json.dumps(fields).encode())
    assert "16 samples" in check(storage)


def test_a_pipe_in_the_place_of_a_shard_is_not_read(packed, tmp_path):
    _, sound = packed
    copy = Storage.at(tmp_path)
    copy.publish(FILE, json.dumps(sound).encode())
    os.mkfifo(tmp_path / sound["shards"]["file"][0])
    with pytest.raises(DataError, match="pipe"):
        verify(copy, Manifest.load(copy), "sha256")


def tar_bytes():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(3):
            image = io.BytesIO()
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(image, "PNG")
            for ending, content in (("png", image.getvalue()), ("cls", b"1")):
                info = tarfile.TarInfo(f"{number}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@FEW
@given(content=damaged(tar_bytes()))
def test_any_tar_is_indexed_or_refused(tmp_path, content):
    storage = Storage.at(tmp_path)
    storage.publish("a.tar", content)
    result_or_error(lambda: index(storage))


def test_a_tar_header_that_claims_to_be_endless_is_refused(tmp_path):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 2**40
    Storage.at(tmp_path).publish("a.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
    with pytest.raises(DataError, match="a header claims to be of"):
        index(Storage.at(tmp_path))


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def npz(**arrays):
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


ARRAYS = {"a.npy": npy(np.ones((4, 3), np.float32)), "a.npz": npz(x=np.ones((4, 3)), y=np.arange(4))}


@FEW
@given(data=st.data())
@pytest.mark.parametrize("name", list(ARRAYS))
def test_any_file_of_arrays_is_read_or_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data.draw(damaged(ARRAYS[name])))
    result_or_error(lambda: list(open_source("npy", str(tmp_path / name)).records()))


def idx_bytes(*shape):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)


def write_idx(folder, images):
    for prefix in ("train", "t10k"):
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(2) + bytes(2))


@FEW
@given(content=damaged(idx_bytes(2, 3, 3) + bytes(18)))
def test_any_idx_file_is_read_or_refused(tmp_path, content):
    write_idx(tmp_path, content)
    result_or_error(lambda: list(open_source("idx", str(tmp_path)).records()))


@pytest.mark.parametrize("shape", [(2, 0, 0), (2, 2**20, 2**20), (0, 3, 3)])
def test_idx_files_of_absurd_sizes_are_refused(tmp_path, shape):
    write_idx(tmp_path, idx_bytes(*shape))
    with pytest.raises(DataError, match=r"shape|bytes of data"):
        open_source("idx", str(tmp_path))


def test_a_gzip_bomb_is_read_no_further_than_its_header_says(tmp_path):
    write_idx(tmp_path, b"")
    (tmp_path / "train-images-idx3-ubyte").unlink()
    bomb = gzip.compress(idx_bytes(2, 3, 3) + bytes(50_000_000))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(bomb)
    with pytest.raises(DataError, match="more than 18 bytes of data"):
        open_source("idx", str(tmp_path))


def test_an_npz_of_16_gigabytes_in_a_small_file_is_refused(tmp_path):
    header = npy(np.zeros((0, 4)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24  # the size that the directory says
    content[at : at + 4] = struct.pack("<I", 2**32 - 2)
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="decompression bomb"):
        open_source("npy", str(tmp_path / "a.npz"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_not_read(tmp_path, make):
    make(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(DataError, match="but a file is needed"):
        open_source("idx", str(tmp_path))


def test_a_picture_of_billions_of_pixels_is_refused(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(DataError, match="9000 x 9000 pixels"):
        open_source("folder", str(tmp_path))
