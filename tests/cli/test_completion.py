"""Completion in bash, by the function that the program gives to the shell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
eval "$(_EBMSCALE_COMPLETE=bash_source ebmscale)"
compopt() { :; }
while IFS= read -r COMP_LINE; do
    COMP_POINT=${#COMP_LINE}
    _ebmscale_completion ebmscale
    echo "${COMPREPLY[*]}"
done
"""
CASES = {
    "ebmscale pre": "presets",
    "ebmscale train preset:di": "digits",  # bash itself keeps `preset:`
    "ebmscale tune preset:digits --space preset:tune/m": "tune/mnist_joint",
    "ebmscale compare preset:compare/effect_st": "compare/effect_stages",
    "ebmscale train x.yaml prior.equilibrate=t": "tilt",
    "ebmscale train x.yaml model.sig": "model.sigma=",
    "ebmscale keys train.ratio.clip": "train.ratio.clip_norm",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_presets_keys_and_values(tmp_path: Path) -> None:
    program = tmp_path / "ebmscale"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ebmscale "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT], env=environment, input="\n".join(CASES) + "\n",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert dict(zip(CASES, done.stdout.splitlines(), strict=True)) == CASES
