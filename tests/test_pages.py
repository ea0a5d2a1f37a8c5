"""The pages: links lead somewhere, the program takes the commands, code runs, and tables are what the code says."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import ebmscale
from ebmscale.cli import cli
from ebmscale.config import load_config
from tests.pages import PAGES, ROOT, commands, name_of, words_of_ours

FIXTURE = Path(__file__).parent / "fixtures" / "format_2"
QUICK = {"min_updates": 50, "max_updates": 100}  # of a fit


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_such_as_the_program_takes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        words = words_of_ours(command)
        if words is None:
            tool = next((word for word in shlex.split(command) if word.startswith(("tools/", "cluster/"))), None)
            assert tool is None or "*" in tool or "NAME" in tool or (ROOT / tool).exists(), command
            continue
        if not words or words[0].startswith("-"):
            continue
        try:
            with click.Context(cli) as top:
                name, found, rest = cli.resolve_command(top, words)
                assert found is not None, command
                if rest and not any(word in ("...", "[key=value") for word in rest):
                    found.make_context(name, rest, parent=top)
        except click.MissingParameter:
            assert f"    {command}" not in page.read_text(), command  # in a sentence, arguments may be left out
        except click.UsageError as error:
            pytest.fail(f"{command}: {error.format_message()}")
        if words[0] in ("train", "plan", "submit") and len(words) > 1 and words[1].startswith("configs/"):
            overrides = [word for word in words[2:] if re.match(r"[a-z_.]+=", word) and not word.endswith("=...")]
            load_config(words[1], overrides)


def test_the_front_page_is_short() -> None:
    assert 8_000 <= (ROOT / "README.md").stat().st_size <= 12_000


def test_generated_tables_are_what_they_are_made_of() -> None:
    """Of keys what the code says, of results what the kept JSON says: byte for byte."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "pages"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run tools/pages: {done.stdout}"


def test_the_python_of_the_front_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_python(ROOT / "README.md", tmp_path, monkeypatch)
    assert names["x"].shape == (64, 1, 8, 8)
    assert names["log_prior"].shape == (64,)


@pytest.mark.slow
def test_the_python_of_the_page_on_ratios_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_python(ROOT / "ebmscale" / "ratios" / "README.md", tmp_path, monkeypatch)
    assert names["fitted"].kl == pytest.approx(0.25, abs=0.15)


def test_the_python_of_the_page_on_measures_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_python(ROOT / "ebmscale" / "evaluate" / "README.md", tmp_path, monkeypatch)
    assert names["log_prior"].shape == (3,)


def run_python(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the Python block of a page beside two small runs, with samples p and q; gives all its names."""
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    for run in ("digits", "mnist"):
        shutil.copytree(FIXTURE / "run", folder / "runs" / run)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ebmscale, "FitSettings", partial(ebmscale.FitSettings, hidden=(8,), **QUICK))
    noise = np.random.default_rng(0)
    p, q = noise.normal(size=(300, 2)), noise.normal(size=(300, 2)) + 0.5
    model = ebmscale.load("runs/mnist")
    names: dict[str, Any] = {"p": p, "q": q, "x": q[:5], "z": model.sample_prior(3)}
    if page.parent.name == "evaluate":
        names["x"] = model.sample(3)
    exec(block, names)
    return names
