"""What other people wrote is shown as it is and steers nothing; output that goes away ends nothing."""

import io
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ebmscale.report.pages import render
from ebmscale.report.pictures import dot_chart
from ebmscale.terminal import LineHandler, Output, Terminal, duration, progress_on, shown, shown_lines

FOREIGN = "a[v2] x[/bold] [red]r :smile: \x1b[31m\x1b]0;t\x07 \u202eevil \u2066 \x9b1m \r\n\t\x00 \udcff \u2028 end"
SHOWN = r"a[v2] x[/bold] [red]r :smile: \x1b[31m\x1b]0;t\x07 \u202eevil \u2066 \x9b1m \r\n\t\x00 \udcff \u2028 end"


def test_what_cannot_be_printed_becomes_its_escape() -> None:
    assert shown(FOREIGN) == SHOWN
    assert shown("naïve ± 神 └─ 🙂") == "naïve ± 神 └─ 🙂"
    assert shown_lines("a\x1b[36mblue\x1b[0m\r\nb\x1b]0;t\x07\n") == "ablue\nb\\x1b]0;t\\x07\n"


def show_line(terminal: Terminal) -> None:
    terminal.print(FOREIGN)


def show_table(terminal: Terminal) -> None:
    table = Table(FOREIGN, title=FOREIGN, caption=FOREIGN)
    table.add_row(FOREIGN)
    table.add_row(Text(shown(FOREIGN)))
    terminal.print(table)


def show_progress(terminal: Terminal) -> None:
    with progress_on(terminal) as progress:
        progress.add_task(FOREIGN, total=2)
        progress.refresh()


def show_live(terminal: Terminal) -> None:
    with Live(Text(shown(FOREIGN)), console=terminal, auto_refresh=False) as live:
        live.refresh()
        print(FOREIGN)  # what another library prints meanwhile


def show_log(terminal: Terminal) -> None:
    log = logging.Logger("apart")
    log.addHandler(LineHandler(terminal))
    try:
        raise ValueError(FOREIGN)
    except ValueError:
        log.exception("message %s", FOREIGN)


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("show", [show_line, show_table, show_progress, show_live, show_log])
def test_foreign_text_reaches_a_terminal_as_its_escapes_alone(show: Callable[..., None], is_terminal: bool) -> None:
    """On a terminal rich's own codes move the cursor and colour text; the codes of the text do nothing."""
    file = io.StringIO()
    terminal = Terminal(
        file=file, width=400, force_terminal=is_terminal, color_system="truecolor", legacy_windows=False
    )
    show(terminal)
    text = file.getvalue()
    for foreign in ("\x1b[31m", "\x1b]0;", *"\u202e\u2066\x9b\x00\u2028\udcff\N{SMILING FACE WITH OPEN MOUTH}"):
        assert foreign not in text
    if show is not show_progress or is_terminal:
        assert "x[/bold]" in text
        assert r"\x1b[31m" in text


def test_a_printed_string_is_one_line() -> None:
    file = io.StringIO()
    Terminal(file=file, width=40).print("run", "x\nerror: all is lost " * 9)
    assert file.getvalue().count("\n") == 1


def test_pages_and_charts_show_names_as_they_are() -> None:
    words = {"name": FOREIGN + "<b>", "about": "", "spread": "", "scrolls": ""}
    page = render("comparison.html", **words, header=["$x^$"], rows=[], best=[], charts=[], samples=[])
    for foreign in ("\x1b", "\u202e", "<b>"):
        assert foreign not in page
    assert r"\u202e" in page
    assert b"<svg" in dot_chart({"a $x^$ b": [1.0, 2.0], "$\\bad{": [2.0]})


def test_output_without_a_reader_or_room_loses_text_and_raises_nothing() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream, open("/dev/full", "w") as full:
        output = Output(stream)
        assert output.write("one\n") == 4
        assert os.read(reading, 100) == b"one\n"
        os.close(reading)
        for text in ("two\n", "three\n" * 100_000):
            output.write(text)
            output.flush()
            print(text, file=Output(full), flush=True)


@pytest.mark.parametrize("columns", ["0", "1", "-1", "many", ""])
def test_tables_have_room_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    file = io.StringIO()
    table = Table("name", "state")
    table.add_row("000000003000", "ok")
    Terminal(file=file).print(table)
    assert all(word in file.getvalue() for word in ("name", "state", "000000003000", "ok"))


def test_text_that_the_stream_cannot_encode_is_written_as_escapes() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="ascii") as stream:
        Output(stream).write("a ± \udcff\n")
    assert os.read(reading, 100) == b"a \\xb1 \\udcff\n"
    os.close(reading)


def test_a_slow_reader_is_waited_for() -> None:
    reading, writing = os.pipe()
    text, got = "x" * 300_000, bytearray()

    def read() -> None:
        while data := os.read(reading, 1000):
            got.extend(data)

    with os.fdopen(writing, "w") as stream:
        reader = threading.Thread(target=read)
        reader.start()
        Output(stream).write(text)
    reader.join()
    os.close(reading)
    assert got.decode() == text


def run(script: str, **streams: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script], text=True, **streams)


STUCK = """
import os, signal, sys
from ebmscale.stop import StopSignal, handle_signals
from ebmscale.terminal import keep_output
keep_output(); handle_signals()
with StopSignal().listening() as stop:
    print("x" * 60_000, flush=True)
    print("ready", file=sys.stderr)
    print("y" * 60_000, flush=True)
sys.exit(130 if stop.name else 1)
"""


def test_a_stop_is_heard_while_nobody_reads() -> None:
    """The pipe is full, as where a pager waits: the process hangs in its output until it is asked to stop."""
    process = run(STUCK, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.terminate()
    assert process.wait(60) == 130
    process.communicate()


CLOSED = """
import os, sys
os.close(1); os.close(2); sys.stdout = sys.stderr = None
from ebmscale.terminal import keep_output
keep_output()
file = open(sys.argv[1], "w")
print("lost"); print("lost", file=sys.stderr); os.write(1, b"lost"); os.write(2, b"lost")
file.write("kept")
"""


def test_a_closed_stream_gives_its_number_to_no_file(tmp_path: Any) -> None:
    subprocess.run([sys.executable, "-c", CLOSED, str(tmp_path / "file")], check=True)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_terminal_that_is_gone_ends_nothing() -> None:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        output = Output(stream)
        output.write("seen\n")
        os.close(leader)
        output.write("lost\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (5000, "83 min"), (9000, "2.5 h"), (800_000, "9 days")],
)
def test_a_duration_has_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text
