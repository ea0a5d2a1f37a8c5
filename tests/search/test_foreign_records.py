"""Records and files of a search that anyone may have written are read or refused in one sentence."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebmscale.documents import read_yaml, write_yaml
from ebmscale.errors import DamagedError
from ebmscale.search.ledger import Ledger
from ebmscale.search.trial import RECORDS, SEARCH_FILE, SearchStore, TrialRecord
from ebmscale.storage import Storage
from tests.foreign import FEW, documents, result_or_error
from tests.search.conftest import make, record

CONFIG, SPACE = make()
SOUND = json.loads(record(3, 0.5, 0.4).model_dump_json())


@FEW
@given(content=documents(SOUND))
def test_any_record_is_read_or_refused(tmp_path: Path, content: dict[str, object]) -> None:
    store = SearchStore(Storage.at(tmp_path))
    store.storage.publish(f"{RECORDS}/0003.json", json.dumps(content).encode())
    result_or_error(lambda: Ledger(store, CONFIG, SPACE).progress())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": 4}, "it is of trial 4"),
        ({"number": -3}, "number"),
        ({"status": "lost"}, "status"),
        ({"reports": [{"held_out_mse": 1.0}]}, "a report has no samples_seen"),
        ({"origins": [{"donor": 1, "folder": "../../other", "samples_seen": 10}]}, "folder"),
    ],
)
def test_a_record_of_another_form_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    store = SearchStore(Storage.at(tmp_path))
    store.storage.publish(f"{RECORDS}/0003.json", json.dumps(SOUND | change).encode())
    with pytest.raises(DamagedError, match="it is not a record of a trial") as caught:
        store.read(3)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"nope": 3}, {"train.ratio.rate": None}, {"train.ratio.rate": 7.0}, {"posterior.start": [1]}]
)
def test_values_that_are_not_of_the_space_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    store = SearchStore(Storage.at(tmp_path))
    content = SOUND | {"values": SOUND["values"] | change}
    store.storage.publish(f"{RECORDS}/0003.json", json.dumps(content).encode())
    with pytest.raises(DamagedError, match=r"trial 3 in .* is damaged: the space has no .*; delete the record"):
        Ledger(store, CONFIG, SPACE)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    store = SearchStore(Storage.at(tmp_path))
    store.write(TrialRecord.model_validate(SOUND))
    assert store.read(3).model_dump_json() == TrialRecord.model_validate(SOUND).model_dump_json()


@FEW
@given(data=st.data())
def test_any_file_of_a_search_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    store = SearchStore(Storage.at(tmp_path))
    store.claim(CONFIG, SPACE)
    tree = read_yaml(store.storage.read_text(SEARCH_FILE), "the search", DamagedError)
    store.storage.publish(SEARCH_FILE, write_yaml(data.draw(documents(tree))).encode())
    result_or_error(store.load)
    result_or_error(lambda: store.claim(CONFIG, SPACE))
    store.storage.delete(SEARCH_FILE)
