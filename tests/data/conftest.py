import numpy as np
import pytest

from ebmscale.data.formats import Record, Source
from ebmscale.data.shard_index import ShardIndex, index_file
from ebmscale.storage import Storage

SHAPE = (2, 3, 4)


@pytest.fixture
def storage(tmp_path):
    return Storage.at(tmp_path / "shards")


@pytest.fixture(scope="session")
def make_source():
    """A function that makes a source of random images; a sample's content depends on its key alone."""

    def make(num_train=50, num_test=0, name="toy"):
        counts = {part: num for part, num in (("train", num_train), ("test", num_test)) if num}

        def records():
            for part, num in counts.items():
                for i in range(num):
                    seed = [i, part == "test"]
                    image = np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)
                    yield Record(f"{part}-{i:06d}", image, i % 3, part)

        return Source(name, "toy", SHAPE, "uint8", ["a", "b", "c"], counts, records)

    return make


@pytest.fixture
def flip_byte():
    """A function that damages one payload of a packed set in place."""

    def flip(storage, shard, sample):
        data = bytearray(storage.read_bytes(shard.file))
        index, _ = ShardIndex.from_bytes(storage.read_bytes(index_file(shard.file)))
        data[index.offsets[sample] + 1] ^= 0x40
        storage.publish(shard.file, bytes(data))

    return flip
