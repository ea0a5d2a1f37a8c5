"""The help of every command: what it does, what each option means, and one example that the program takes."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ebmscale.cli import cli
from ebmscale.config.presets import KINDS, PREFIX, file_of
from ebmscale.evaluate.metrics import DEFAULT_SAMPLES

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(cli.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_a_command_that_the_program_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    epilog = cli.commands[name].epilog or ""
    lines = [line.strip() for line in epilog.splitlines() if line.startswith("  ebmscale ")]
    assert len(lines) == 1
    words = shlex.split(lines[0])
    assert words[1] == name
    with click.Context(cli) as top:
        cli.commands[name].make_context(name, words[2:], parent=top)
    for word in words[2:]:
        assert not word.startswith("configs/"), "a preset has a name that works without a clone"
        assert file_of(word, *KINDS).exists() or not word.startswith(PREFIX)


def groups(group: click.Group = cli) -> Iterator[click.Group]:
    yield group
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from groups(command)


@pytest.mark.parametrize("group", list(groups()), ids=lambda group: group.name)
def test_the_list_of_commands_has_whole_sentences(group: click.Group) -> None:
    listed = CliRunner().invoke(group, ["--help"], terminal_width=80).output
    assert "..." not in listed.partition("Commands:")[2]


def test_the_default_numbers_of_samples_are_those_of_the_metrics() -> None:
    (option,) = (one for one in cli.commands["evaluate"].params if one.name == "counts")
    assert isinstance(option, click.Option)
    said = option.help or ""
    assert all(f"{num:,}" in said and metric in said for metric, num in DEFAULT_SAMPLES.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_means(name: str) -> None:
    command = cli.commands[name]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
