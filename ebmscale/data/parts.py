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
    """The part of each name, where the names together cut a set into parts; None where they do not.

    Names of at least two parts are a cut. Names of one part are a cut only where each is nothing but the part's word
    ("test", "Train"): "test tube" and "test drive" are classes.

    Args:
        names: of folders, files or arrays that lie side by side.
        where: they lie, for the error.

    Raises:
        DataError: some names say at least two parts and others say none, so that their part is not known.
    """
    names = list(names)
    found = {name: part for name in names if (part := part_of(name)) is not None}
    if len(set(found.values())) < 2:
        plain = all(name.lower() in _WORDS[part] for name, part in found.items())
        return found if found and plain and len(found) == len(names) else None
    others = [name for name in names if name not in found]
    if others:
        shown = ", ".join(others[:3])
        raise DataError(
            f"{where} holds {', '.join(sorted(found)[:6])}, which are parts of a set, and beside them {shown}, whose "
            "part is not known; move that away or into one of the parts."
        )
    return found
