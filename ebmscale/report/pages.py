"""HTML pages that need no other file: what all have in common, and what is put on them."""

import re
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined


class Picture(NamedTuple):
    """An image on a page, its title and what to say under it."""

    uri: str
    title: str
    note: str = ""


class Figure(NamedTuple):
    """A key figure: its name, its value, and where it comes from."""

    name: str
    value: str
    note: str = ""


def render(template: str, **values: Any) -> str:
    """A page, by the name of its template beside this file."""
    loader = PackageLoader("ebmscale", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def without_credentials(text: str) -> str:
    """The text with `user:password@` taken out of addresses."""
    return re.sub(r"(?<=://)[^/@\s:]*:[^/@\s]*@", "", text)
