"""The group of all commands, the console that they print on, and what several of them have."""

import math
from typing import Any

import click

import ebmscale
from ebmscale.terminal import Terminal

console = Terminal()

MOST = 2**31

seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of everything random."
)


class NumberRange(click.FloatRange):
    """A number within bounds; NaN and infinity are refused, as no bound keeps NaN out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Count(click.IntRange):
    """How many of something: from `least` on, and not more than arrays can have."""

    def __init__(self, least: int):
        super().__init__(least)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        number = int(super().convert(value, param, ctx))
        if number >= MOST:
            self.fail(f"{value} is too large; the greatest is {MOST - 1}.", param, ctx)
        return number


def example(command: str) -> str:
    """The last lines of a command's help: one example, on a line that click does not break."""
    return f"\b\nExample:\n  {command}"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ebmscale.__version__, prog_name="ebmscale")
def cli() -> None:
    """Latent-space energy-based priors by adaptive multi-stage density ratio estimation."""
