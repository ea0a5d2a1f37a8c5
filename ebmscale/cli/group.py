"""The group of all commands, and the console that they print on."""

import click

import ebmscale
from ebmscale.terminal import Terminal

console = Terminal()


def example(command: str) -> str:
    """The last lines of a command's help: one example, on a line that click does not break."""
    return f"\b\nExample:\n  {command}"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ebmscale.__version__, prog_name="ebmscale")
def cli() -> None:
    """Latent-space energy-based priors by adaptive multi-stage density ratio estimation."""
