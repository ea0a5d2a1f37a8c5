import numpy as np
import pytest
import s3fs
from hypothesis import settings

from ebmscale.data.formats import Record, Source
from ebmscale.storage import Storage
from tests.s3_server import KEY, SECRET, S3Server, missing_programs

SHAPE = (2, 3, 4)

settings.register_profile("busy-machine", deadline=None)
settings.load_profile("busy-machine")


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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An S3 server with an empty bucket named so; the environment says how to reach it."""
    if missing := missing_programs():
        pytest.skip(f"no S3 server: install the Debian packages of {', '.join(missing)}")
    server = S3Server(tmp_path_factory.mktemp("ceph"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        try:
            server.start()
            s3fs.S3FileSystem(endpoint_url=server.url).mkdir("bucket")
            yield server
        finally:
            server.stop()


@pytest.fixture
def flip_byte():
    """A function that damages one payload of a packed set in place."""

    def flip(storage, shard, sample):
        data = bytearray(storage.read_bytes(shard.file))
        data[shard.offsets[sample] + 1] ^= 0x40
        storage.publish(shard.file, bytes(data))

    return flip
