import io

from ebmscale.cli.progress import FIRST_LINE_S, NEXT_LINE_S, Steps
from ebmscale.terminal import Terminal


def test_a_task_that_takes_time_prints_plain_lines_now_and_then():
    now, out = [0.0], io.StringIO()
    with Steps(Terminal(file=out), "packing folder", "samples", clock=lambda: now[0]) as show:
        show(1, 2000)
        now[0] = FIRST_LINE_S + 0.1
        show(1000, 2000)
        show(1001, 2000)
        now[0] += NEXT_LINE_S
        show(1500, None)
    assert out.getvalue().splitlines() == ["packing folder: 1,000 of 2,000 samples", "packing folder: 1,500 samples"]


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    with Steps(Terminal(file=out, force_terminal=True, width=80), "a task", "samples") as show:
        show(2, 2)
    assert "a task" in out.getvalue()
    assert "100%" in out.getvalue()
