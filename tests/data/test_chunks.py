import numpy as np
import pytest
import torch

from ebmscale.data.choose import select_all, take
from ebmscale.data.chunks import iter_chunks, read_split
from ebmscale.data.pack import pack
from ebmscale.data.shard_index import key_hash
from ebmscale.data.split import select
from ebmscale.errors import DataError


def test_the_chunks_of_all_workers_are_the_split(make_source, storage):
    manifest = pack(make_source(num_train=100), storage, shard_samples=16)
    selection = select(manifest, "train")
    alone = list(iter_chunks(storage, manifest, selection, chunk_samples=15))
    for size in (2, 3, 20):
        shared = [chunk for rank in range(size) for chunk in iter_chunks(storage, manifest, selection, rank, size, 15)]
        shared.sort(key=lambda chunk: chunk.index)
        assert [chunk.keys for chunk in shared] == [chunk.keys for chunk in alone]
        assert all(torch.equal(a.images, b.images) for a, b in zip(shared, alone, strict=True))
    images, labels, keys = read_split(storage, manifest, "train")
    place = {key: at for at, key in enumerate(keys)}
    rows = [place[key] for chunk in alone for key in chunk.keys]
    assert sorted(rows) == list(range(len(keys)))
    assert torch.equal(torch.cat([chunk.images for chunk in alone]), images[rows])
    assert torch.equal(torch.cat([chunk.labels for chunk in alone]), labels[rows])


def test_a_limit_takes_the_lowest_hashes_in_the_order_of_the_files(make_source, storage):
    manifest = pack(make_source(num_train=100), storage, shard_samples=16)
    split = select(manifest, "train", 0)
    keys, labels = split.find().texts(), split.find().labels
    few = take(split, 10).find().texts()
    assert set(few) == set(sorted(keys, key=key_hash)[:10])
    assert few == [key for key in keys if key in set(few)]
    assert take(split, 10**6).find().texts() == take(split, None).find().texts() == keys
    without = take(split, None, without_label=1).find().texts()
    assert without == [key for key, label in zip(keys, labels, strict=True) if label != 1]
    assert 1 not in take(split, 20, without_label=1).find().labels


def test_everything_is_every_part(make_source, storage):
    manifest = pack(make_source(num_train=20, num_test=7), storage, shard_samples=8)
    found = select_all(manifest)
    assert len(set(found.find().texts())) == 27
    chunks = list(iter_chunks(storage, manifest, found))
    assert len(chunks) == 1
    np.testing.assert_array_equal(chunks[0].labels, found.find().labels)


def test_a_damaged_sample_ends_the_reading(make_source, storage, flip_byte):
    manifest = pack(make_source(), storage, shard_samples=10)
    flip_byte(storage, manifest.shards[3], 0)
    with pytest.raises(DataError, match=r"toy-train-000003\.tar has damaged samples"):
        list(iter_chunks(storage, manifest, select_all(manifest)))
