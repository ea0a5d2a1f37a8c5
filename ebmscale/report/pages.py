"""HTML pages that need no other file: what all have in common, and what is put on them."""

from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ebmscale.terminal import shown


class Picture(NamedTuple):
    """An image on a page, its title and what to say under it."""

    uri: str
    title: str
    note: str = ""


class KeyFigure(NamedTuple):
    """A key figure: its name, its value, and where it comes from."""

    name: str
    value: str
    note: str = ""


def render(template: str, **values: Any) -> str:
    """A page, by the name of its template beside this file."""
    loader = PackageLoader("ebmscale", "report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    return environment.get_template(template).render(**values)


def _visible(value: Any) -> Any:
    """Data with control characters and overrides of the direction of text as their escapes."""
    return shown(value, but="\n") if isinstance(value, str) and not isinstance(value, Markup) else value
