"""Documents of a storage: what is too large, no file, or of another form is one sentence."""

from pathlib import Path

import pytest

from ebmscale.errors import DamagedError, NotFoundError
from ebmscale.storage import Storage
from ebmscale.stored import Count, FileName, Stored, read_document, read_file
from tests.irregular import KINDS, make_irregular


class Form(Stored):
    file: FileName
    count: Count


def write(folder: Path, text: str) -> Storage:
    (folder / "x.json").write_text(text)
    return Storage.at(folder)


def test_what_is_of_the_form_is_read_and_keys_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    storage = write(tmp_path, '{"file": "a.tar", "count": 3, "later": [1]}')
    assert read_document(storage, "x.json", Form) == Form(file="a.tar", count=3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file": "a.tar"}', "count: field required"),
        ('{"file": "a.tar", "count": "3"}', "count: input should be a valid integer, not '3'"),
        ('{"file": "a.tar", "count": -1}', "greater than or equal to 0"),
        ('{"file": "a.tar", "count": 1e999}', "too large"),
        ('{"file": "../a.tar", "count": 1}', "file: string should match"),
        ('{"file": "\\u001b[31m", "count": 1}', "file: string should match"),
        ("[1]", "valid dictionary or instance of Form, not a list of 1"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested deeper"),
        ('{"count": ' + "9" * 5000 + "}", "integer of 5000 digits"),
    ],
)
def test_another_form_is_a_sentence_that_says_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DamagedError) as caught:
        read_document(write(tmp_path, text), "x.json", Form)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.json"
    make_irregular(path, kind)
    with pytest.raises(DamagedError, match="but a file is needed"):
        read_file(Storage.at(tmp_path), "x.json", 1000)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedError, match=r"1,099,511,627,776 bytes, and at most 1,000"):
        read_file(Storage.at(tmp_path), "x.json", 1000)


def test_a_file_that_is_missing_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_document(Storage.at(tmp_path), "x.json", Form)
