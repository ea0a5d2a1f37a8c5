"""A set with a manifest of version 1 is split and ordered as by the version that wrote it, before and after `index`.

`fixtures/shards_1/order.json` was written by that version.
"""

import itertools
import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from ebmscale.config import HeldOutBlock
from ebmscale.data.chunks import read_split
from ebmscale.data.index import index
from ebmscale.data.indexes import IndexesInMemory
from ebmscale.data.manifest import Manifest
from ebmscale.data.split import select
from ebmscale.storage import Storage
from tests.data.streams import image_stream

FIXTURE = Path(__file__).parents[1] / "fixtures" / "shards_1"
NOTED = json.loads((FIXTURE / "order.json").read_text())


@pytest.fixture(params=["as it was", "written anew"])
def old_set(request, tmp_path):
    storage = Storage.at(shutil.copytree(FIXTURE / "set", tmp_path / "set"))
    if request.param == "as it was":
        return storage, Manifest.load(storage)
    notes = []
    manifest = index(storage, note=notes.append)
    assert notes == ["10 index file(s) written"]
    assert not isinstance(manifest.indexes, IndexesInMemory)
    return storage, manifest


def test_identity_and_splits_are_those_of_then(old_set):
    storage, manifest = old_set
    assert manifest.identity() == NOTED["identity"]
    for case in NOTED["splits"]:
        rule = (case["split"], case["fraction"], HeldOutBlock(**case["held_out"]))
        assert select(manifest, *rule).find().texts() == case["keys"]
        split, fraction, held_out = rule
        assert read_split(storage, manifest, split, 7, fraction, held_out)[2] == case["lowest"]


@pytest.mark.parametrize("case", NOTED["orders"], ids=lambda case: f"{case['fraction']}-{case['seed']}")
def test_the_order_is_that_of_then(old_set, case):
    storage, manifest = old_set
    names = ("batch_size", "seed", "num_streams", "window", "size", "start")
    settings = {name: case[name] for name in names} | {"validation_fraction": case["fraction"]}
    for rank, expected in enumerate(case["ranks"]):
        held_out = HeldOutBlock(**case["held_out"])
        stream = image_stream(storage, manifest, split="train", rank=rank, held_out=held_out, **settings)
        with closing(stream):
            batches = list(itertools.islice(stream, len(expected)))
        assert [
            [batch.rows.tolist(), batch.keys, batch.samples.tolist(), batch.labels.tolist()] for batch in batches
        ] == expected
