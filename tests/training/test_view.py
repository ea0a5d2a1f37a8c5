"""The display on a terminal of 80 columns and 24 lines: nothing is cut, and every decision stays above."""

import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

from ebmscale.training.view import describe_event, event_lines

ROOT = Path(__file__).parents[2]
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
EVENT = {
    "stage": 1,
    "held_out_mse": 0.0441,
    "evidence": {"loss": 0.44, "auc": 0.967, "kl_bound": 1.744, "kl_bound_error": 0.555, "ess": 0.006},
    "decision": "Advance",
    "reason": "KL bound 1.7438 +- 0.5548 nats",
}


def test_an_event_is_two_or_three_lines_of_80_columns() -> None:
    lines = event_lines(25_000, EVENT, 80)
    assert lines[0] == "   25,000 samples  stage 1  KL >= 1.744 +- 0.555  Advance"
    assert lines[-1].strip() == EVENT["reason"]
    assert len(event_lines(25_000, EVENT | {"reason": "exploring"}, 80)) == 2
    longest = EVENT | {"reason": "settling begins: no better loss in 3 measurements"}
    assert max(map(len, event_lines(5_000_000, longest, 80))) <= 80
    for word in ("0.0441", "0.4400", "0.967", "0.6%"):
        assert word in " ".join(lines)
        assert word in describe_event(25_000, EVENT)


def test_a_run_on_a_small_terminal_shows_bound_decision_and_eta(tiny_text: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    words = [sys.executable, "-m", "ebmscale", "train", str(tmp_path / "tiny.yaml"), "train.max_samples=960"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    process, terminal = pty.fork()
    if process == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.execve(words[0], words, {name: v for name, v in environment.items() if name not in ("COLUMNS", "LINES")})
    seen = b""
    try:
        while True:
            seen += os.read(terminal, 10_000)
    except OSError:  # the terminal's other end is closed
        pass
    _, status = os.waitpid(process, 0)
    text = CODES.sub("", seen.decode())
    assert os.waitstatus_to_exitcode(status) == 0, text
    events = [json.loads(line) for line in (tmp_path / "runs" / "tiny" / "events.jsonl").read_text().splitlines()]
    assert len(events) >= 5
    for event in events:
        for line in event_lines(event["samples_seen"], event, 80):
            assert line in text
    assert re.search(r"960/960 ETA 0 s", text)
    assert re.search(r"ETA \d+ s", text)
    assert "…" not in text
    assert text.startswith(f"run {tmp_path}/runs/tiny: it is opened")
