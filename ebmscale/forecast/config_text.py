"""Values in the text of a configuration."""

import re


def name_for(url: str) -> str:
    """A name of a run from the address of its data."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rstrip("/").rpartition("/")[2]).strip(".-_")
    return name or "first"


def thousands(value: float, least: int) -> int:
    """The value in whole thousands, or in whole hundreds where it is small."""
    step = 1000 if value >= 10_000 else 100
    return max(round(value / step) * step, least)


def hundreds(value: float) -> int:
    """The value in whole hundreds."""
    return round(value / 100) * 100


def quoted(url: str) -> str:
    """An address as a value of YAML."""
    return url if re.fullmatch(r"[A-Za-z/._~][A-Za-z0-9/._~-]*", url) else "'" + url.replace("'", "''") + "'"
