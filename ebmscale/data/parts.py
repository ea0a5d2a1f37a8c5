"""The parts of a data set (train, validation, test), told from the names of folders, files and arrays.

This is the one rule for all formats. A name is cut into words at everything that is no letter or digit, between
letters and digits, and before a capital: "train2017", "seg_val" and "X_test" name a part. What belongs to a validation
or test part is never trained on, so where a name holds the words of several parts, test comes before validation, and
validation before train.
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
_NO_CLASS = {"test", "testing", "val", "validation"}  # words that are no class's name either


def words_of(name: str) -> set[str]:
    """The words of a name in lower case; of a word with digits also its letters alone."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()
    return set(re.findall(r"[a-z0-9]+", apart)) | set(re.findall(r"[a-z]+", apart))


def part_of(name: str) -> str | None:
    """The part that a name says, one of `PARTS`; None where it says none."""
    words = words_of(name)
    words |= {word.removesuffix("set") for word in words}
    words |= {word[1:] for word in words if word[:1] in ("x", "y")}  # Xtrain, ytest
    return next((part for part in reversed(PARTS) if words & _WORDS[part]), None)


def parts_of(names: Iterable[str], where: str) -> dict[str, str] | None:
    """The part of each folder, where folders together cut a set into parts; None where they do not, as classes do.

    Folders of at least two parts are a cut. Those of one part are a cut only where each is called nothing but the
    part's word ("test", "Train"): "test tube" and "test drive" are classes.

    Args:
        names: of folders that lie side by side.
        where: they lie, for the error.

    Raises:
        DataError: it cannot be told which part some of them belong to.
    """
    names = list(names)
    found = {name: part for name in names if (part := part_of(name)) is not None}
    others = [name for name in names if name not in found]
    plain = [name for name, part in found.items() if name.lower() in _WORDS[part]]
    if len(set(found.values())) < 2 and (others or len(plain) < len(found)):
        found = {name: part for name, part in found.items() if name.lower() in _NO_CLASS}
    if found and others:
        raise DataError(
            f"{where} holds {', '.join(sorted(found)[:6])}, which says a part of the set, and beside it "
            f"{', '.join(others[:3])}, whose part is not known; move that away or into one of the parts."
        )
    return found or None
