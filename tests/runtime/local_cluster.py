"""Ray clusters of several nodes on this machine, and runs on them as other processes, for tests."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cluster" / "local"
PATIENCE_S = 240.0


class LocalCluster:
    """What `cluster/local` starts; its folder has a short path, as the sockets in it need."""

    def __init__(self, folder: Path):
        self.folder = folder

    def up(self, num_nodes: int, *options: str) -> None:
        self._call("up", "-n", str(num_nodes), *options)

    def down(self) -> None:
        self._call("down")

    def add(self) -> int:
        return int(self._call("add"))

    def kill(self, node: int) -> None:
        self._call("kill", str(node))

    def restart_head(self) -> None:
        self._call("restart-head")

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "cluster.json").read_text())

    @property
    def address(self) -> str:
        return self._line("address")

    @property
    def gateway(self) -> str | None:
        """This machine's address as nodes with namespaces see it."""
        found = re.search(r"this machine is (\S+)", self._call("status"))
        return found[1] if found else None

    def node_address(self, node: int) -> str:
        return self._line(f"node {node}").rstrip(",")

    @property
    def access(self) -> dict[str, str]:
        """Variables by which a command that is not run beside the head has the token."""
        return {name: value for name, value in self.exported.items() if "AUTH" in name}

    @property
    def exported(self) -> dict[str, str]:
        """What `cluster/local env` names."""
        return dict(line.removeprefix("export ").split("=", 1) for line in self._call("env").splitlines())

    @property
    def jobs_url(self) -> str:
        return self._line("jobs")

    def command(self, *words: str) -> list[str]:
        """A command as it is run beside the head."""
        return [sys.executable, str(SCRIPT), "--dir", str(self.folder), "run", *words]

    def processes(self, title: str, node: int | None = None) -> list[int]:
        """Processes of the nodes whose command line begins so."""
        where = "" if node is None else f"{node}\0"
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                marked = f"EBMSCALE_LOCAL_NODE={self.folder}:{where}".encode() in (entry / "environ").read_bytes()
                if marked and (entry / "cmdline").read_bytes().decode(errors="replace").startswith(title):
                    found.append(int(entry.name))
        return sorted(found)

    def _line(self, name: str) -> str:
        found = re.search(rf"^{name} +(\S+)", self._call("status"), re.MULTILINE)
        assert found is not None
        return found[1]

    def _call(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), "--dir", str(self.folder), *words],
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


class Running:
    """A command that runs, its output read line by line as it comes."""

    def __init__(self, command: list[str], **environment: str):
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
        )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, pattern: str, patience_s: float = PATIENCE_S) -> str:
        """The next line that the pattern is found in."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                line = self._queue.get(timeout=0.2)
                if line is None:
                    break
                if re.search(pattern, line):
                    return line
        raise AssertionError(f"no line with {pattern!r} in:\n{self.text}")

    def end(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code."""
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.text}") from None

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._queue.put(line)
        self._queue.put(None)


@contextlib.contextmanager
def running(command: list[str], **environment: str) -> Iterator[Running]:
    """A command, killed at the end if it still runs."""
    one = Running(command, **environment)
    try:
        yield one
    finally:
        one.kill()


def config_file(folder: Path, text: str, **blocks: Any) -> Path:
    """A configuration with some values changed, as a file."""
    tree = yaml.safe_load(text)
    for name, values in blocks.items():
        tree[name] = tree.get(name, {}) | values if isinstance(values, dict) else values
    path = folder / f"{tree['run']['name']}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def train_command(config: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "ebmscale", "train", str(config), *overrides]


def final_state(run: Path) -> dict[str, Any]:
    """Checksums of the last checkpoint of a run, without its clock."""
    folder = max((run / "checkpoints").iterdir())
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {name: about["sha256"] for name, about in manifest["files"].items() if name != "clock.json"}
    return {"samples_seen": manifest["samples_seen"], "files": files, "ratios": manifest["ratios"]}
