"""The wheel: outside of a clone it has the presets and the files for clusters, and the first command works."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("ebmscale", "configs", "cluster", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs; the wheel is built from a copy, so that no old build is in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    subprocess.run(["cp", "-r", "--no-dereference", *(str(ROOT / part) for part in PARTS), str(source)], check=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "installed")
    return folder / "installed"


def call(installed: Path, here: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "ebmscale", *arguments]
    done = subprocess.run(
        command, cwd=here, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_every_preset_and_cluster_file(installed: Path) -> None:
    for source, target in (("configs", "presets"), ("cluster", "cluster_files")):
        wanted = {str(path.relative_to(ROOT / source)) for path in (ROOT / source).rglob("*") if path.is_file()}
        found = {
            str(p.relative_to(installed / "ebmscale" / target)) for p in (installed / "ebmscale" / target).rglob("*")
        }
        pages = {name for name in wanted if name.endswith(".md") or name.startswith("compare/results/")}
        assert wanted - pages <= found


def test_the_first_command_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "preset:digits " in call(installed, tmp_path, "presets")
    short = [
        "prior.base=standard",
        "stages.start_samples=0",
        "train.max_samples=400",
        "stages.evidence_every=400",
        "metrics.every_samples=400",
        "prior.sample_steps=2",
    ]
    said = call(installed, tmp_path, "train", "preset:digits", *short)
    assert "report   " in said
    assert (tmp_path / "runs" / "digits" / "report.html").exists()
    assert not list((installed / "ebmscale" / "presets").rglob("*.part*"))
