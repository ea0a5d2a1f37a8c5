"""The group that every command joins, and the console they print on."""

import click

import ebmscale
from ebmscale.terminal import Terminal

console = Terminal()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ebmscale.__version__, prog_name="ebmscale")
def cli() -> None:
    """Latent-space energy-based priors by adaptive multi-stage density ratio estimation."""
