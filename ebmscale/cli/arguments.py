"""The arguments of a configuration: a file or a preset, and `key=value`; each completes in the shell."""

from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from ebmscale.config.presets import PREFIX, preset_names
from ebmscale.config.table import key_rows


class FileOrPreset(click.Path):
    """A YAML file, or `preset:NAME`.

    Args:
        folders: keys of `config.presets.KINDS` that the shell offers.
    """

    def __init__(self, *folders: str):
        super().__init__(dir_okay=False)
        self._folders = folders

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The presets that begin so, and the shell's own completion of files."""
        names = [PREFIX + name for name in preset_names() if name.rpartition("/")[0] in self._folders]
        items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return items if items and incomplete else [*items, *super().shell_complete(ctx, param, incomplete)]


class Override(click.ParamType):
    """A word `key=value`."""

    name = "key=value"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The keys that begin so, with their equals sign; behind it the values, where they are few."""
        key, equals, value = incomplete.partition("=")
        if not equals:
            return [CompletionItem(f"{row.name}=", help=row.meaning) for row in key_rows() if row.name.startswith(key)]
        values = next((row.choices for row in key_rows() if row.name == key), ())
        return [CompletionItem(f"{key}={one}") for one in values if one.startswith(value)]


class KeyPrefix(click.ParamType):
    """The beginning of a key."""

    name = "prefix"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The keys that begin so."""
        return [CompletionItem(row.name) for row in key_rows() if row.name.startswith(incomplete)]


CONFIG = FileOrPreset("")
COMPARISON = FileOrPreset("compare", "")
SPACE = FileOrPreset("tune")

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def config_argument(metavar: str = "CONFIG", required: bool = True) -> Decorator:
    """The argument `config_file`."""
    return click.argument("config_file", metavar=metavar, type=CONFIG, required=required)


overrides_argument: Decorator = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", type=Override())
"""The argument `overrides`."""
