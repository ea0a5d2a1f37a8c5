import io

from ebmscale.cli.progress import FIRST_LINE_S, NEXT_LINE_S, Steps
from ebmscale.terminal import Terminal


class Waits:
    """Stands for the time between lines: does what a task does meanwhile, and ends after the last of these."""

    def __init__(self, *meanwhile):
        self.meanwhile, self.seconds = list(meanwhile), []

    def __call__(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        if not self.meanwhile:
            return True
        self.meanwhile.pop(0)()
        return False


def test_a_task_that_takes_time_prints_plain_lines_now_and_then_also_where_nothing_is_done():
    out = io.StringIO()
    waits = Waits(lambda: show(1000, 2000), lambda: None, lambda: (show(3, None, "shards"), show.say("joining")))
    show = Steps("packing folder", "samples", on=Terminal(file=out), clock=lambda: 5.0, wait=waits)
    with show:
        show(1, 2000)
        show._thread.join()
    assert out.getvalue().splitlines() == [
        "packing folder: 1,000 of 2,000 samples (0 s)",
        "packing folder: 1,000 of 2,000 samples (0 s)",
        "packing folder: joining: 3 shards (0 s)",
    ]
    assert waits.seconds == [FIRST_LINE_S, NEXT_LINE_S, NEXT_LINE_S, NEXT_LINE_S]


def test_a_task_that_ends_soon_prints_nothing():
    out = io.StringIO()
    with Steps("packing folder", "samples", on=Terminal(file=out)) as show:
        show(1, 2)
    assert out.getvalue() == ""


def test_a_terminal_gets_a_line_that_changes():
    for unit, words in (("samples", "100%"), ("", "0:00:0")):
        out = io.StringIO()
        with Steps("a task", unit, on=Terminal(file=out, force_terminal=True, width=80)) as show:
            show(2, 2)
            show.say("now this")
        assert "a task: now this" in out.getvalue()
        assert words in out.getvalue()
