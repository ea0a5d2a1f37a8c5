"""Tells what a folder holds. A command uses it to refuse a folder that holds another kind of thing."""

from ebmscale.errors import ConfigError
from ebmscale.storage import Storage

MARKS = {
    "run": ("config.yaml",),
    "search": ("search.yaml",),
    "comparison": ("comparison.json", "budget.json", "results"),
    "export": ("model.json",),
    "packed set": ("manifest.json",),
    "feature network": ("feature_net.json",),
}
"""By kind: the files of which a folder of this kind has one."""
READERS = {
    "run": "`ebmscale sample`, `evaluate` and `report` read it",
    "search": "its runs are in the folder trials, and best.yaml is the best configuration",
    "comparison": "its runs are in folders of their own there",
    "export": "`ebmscale.load` and `ebmscale sample` open it",
    "packed set": "it is for data.url",
    "feature network": "it is for --features",
}


def kinds_at(storage: Storage) -> list[str]:
    """The kinds of things in a folder; folders of earlier versions may have two."""
    return [kind for kind, files in MARKS.items() if any(storage.exists(file) for file in files)]


def refuse_other(storage: Storage, kind: str, way_out: str) -> None:
    """Refuses a folder that holds something else than a `kind`, to which one is about to be written.

    Args:
        storage: the folder.
        kind: a key of `MARKS`, or what else is written.
        way_out: what to do, as the end of the sentence.

    Raises:
        ConfigError: it holds something else.
    """
    found = kinds_at(storage)
    if found and kind not in found:
        raise ConfigError(f"{storage.url} holds {_a(found[0])}, and no {kind} is written there; {way_out}.")


def what_is_there(storage: Storage) -> str:
    """A clause about what a folder holds, for a message that something else is missing; empty if that is unknown."""
    found = kinds_at(storage)
    return f" It holds {_a(found[0])}: {READERS[found[0]]}." if found else ""


def _a(kind: str) -> str:
    return f"an {kind}" if kind == "export" else f"a {kind}"
