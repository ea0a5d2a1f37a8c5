from pathlib import Path

import pytest

from ebmscale.config import RunConfig
from ebmscale.data.manifest import Manifest
from ebmscale.forecast.set_start import SetStart
from ebmscale.storage import Storage
from tests.data.made_up_set import MadeUpFiles, make_up
from tests.data.test_a_billion_samples import open_stream

FIXTURE = Path(__file__).parents[1] / "fixtures" / "shards_1" / "set"


def of_data(config: RunConfig, **changes: object) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


@pytest.mark.parametrize(("num_streams", "per_shard"), [(16, 1000), (64, 1000), (16, 5000), (64, 5000)])
def test_the_bytes_before_the_first_batch_are_those_said(tiny: RunConfig, num_streams: int, per_shard: int) -> None:
    manifest = make_up(300, per_shard)
    config = of_data(tiny, num_streams=num_streams, shuffle_window=512)
    stream = open_stream(manifest, 0, 0, num_streams=num_streams, size=1, batch_size=2 * num_streams)
    next(stream._read_groups(0))
    said = SetStart.of(config, manifest, num_streams).first_bytes
    assert said == pytest.approx(MadeUpFiles.num_bytes, rel=0.4)


def test_what_reads_everything_is_said(tiny: RunConfig) -> None:
    manifest = make_up(300, 1000)
    usual = SetStart.of(of_data(tiny, validation_fraction=0.05), manifest, 4).sentences()
    assert len(usual) == 2
    assert "the first limit of a larger set is its manifest" in usual[-1]
    other = SetStart.of(of_data(tiny, validation_fraction=0.03, verify="sha256"), manifest, 4).sentences()
    assert "indexes of all shards" in other[1]
    assert "data.validation_fraction" in other[1]
    assert "data.verify=sha256" in other[2]


def test_a_set_of_version_1_is_in_memory(tiny: RunConfig) -> None:
    old = Manifest.load(Storage.at(FIXTURE))
    assert SetStart.of(tiny, old, 4).memory_bytes >= 60 * old.num_samples
