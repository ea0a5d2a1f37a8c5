"""Rendering of self-contained HTML pages, and the elements that all pages use."""

from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ebmscale.terminal import shown


class Picture(NamedTuple):
    """An image on a page: its data URI, its title above and a note below it."""

    uri: str
    title: str
    note: str = ""


class KeyFigure(NamedTuple):
    """A key figure on a page: its name, its value, and a note about it."""

    name: str
    value: str
    note: str = ""


def render(template: str, **values: Any) -> str:
    """A page from the values and the name of its template, which lies beside this file."""
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
    """Text in which control characters and overrides of the text direction are escaped."""
    return shown(value, but="\n") if isinstance(value, str) and not isinstance(value, Markup) else value
