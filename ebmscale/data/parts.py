"""The parts of a data set (train, validation, test), by the names of folders, files and arrays.

This is the one rule for all formats. A name is cut into words at everything that is not a letter or digit, between
letters and digits, and before a capital: "train2017", "seg_val" and "X_test" name a part. If a name
holds the words of several parts, test wins over validation, and validation over train: what belongs to a validation or
test part is never trained on.
"""

import re
from collections.abc import Iterable

from ebmscale.errors import DataError

PARTS = ("train", "validation", "test")

_WORDS = {
    "train": {"train", "training", "trn", "trainval"},
    "validation": {"val", "valid", "validation", "dev", "development"},
    "test": {"test", "testing", "tst", "t10k", "eval", "evaluation", "holdout", "heldout"},
}
_NO_CLASS = {"test", "testing", "val", "validation"}  # words that are not a class's name either


def words_of(name: str) -> set[str]:
    """The words of a name in lower case; of a word with digits also its letters alone."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    return set(re.findall(r"[a-z0-9]+", apart)) | set(re.findall(r"[a-z]+", apart))


def part_of(name: str) -> str | None:
    """The part that the words of a name say, one of `PARTS`; None if they say none."""
    words = words_of(name)
    words |= {word.removesuffix("set") for word in words}
    words |= {word[1:] for word in words if word[:1] in ("x", "y")}  # Xtrain, ytest
    return next((part for part in reversed(PARTS) if words & _WORDS[part]), None)


def parts_of(names: Iterable[str], where: str) -> dict[str, str] | None:
    """The part of each folder if the folders are the parts of a set; None if they are not, such as folders of classes.

    Folders that name two parts or more are parts. Folders that name one part are parts only if each is called by the
    part's word and nothing else ("test", "Train"): "test tube" and "test drive" are classes.

    Args:
        names: of folders that lie side by side.
        where: the place of the folders, for the error.

    Raises:
        DataError: the part of some folders is not known.
    """
    names = list(names)
    found = {name: part for name in names if (part := part_of(name)) is not None}
    others = [name for name in names if name not in found]
    plain = [name for name, part in found.items() if name.lower() in _WORDS[part]]
    if len(set(found.values())) < 2 and (others or len(plain) < len(found)):
        found = {name: part for name, part in found.items() if name.lower() in _NO_CLASS}
    if found and others:
        raise DataError(
            f"{where} holds {', '.join(sorted(found)[:6])}, whose name says a part of the set, and beside it "
            f"{', '.join(others[:3])}, whose part is not known; move these away or into one of the parts."
        )
    return found or None
