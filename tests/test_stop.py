"""How a process takes signals, in processes that do nothing else."""

import signal
import subprocess
import sys

import pytest

from ebmscale.stop import StopSignal, asked_by

BEGIN = """
import signal, sys, time
import ebmscale.stop
from ebmscale.stop import StopSignal, asked_by, handle_signals
"""
LISTENS = (
    BEGIN
    + """
handle_signals()
with StopSignal().listening() as stop:
    print("ready", flush=True)
    while stop.name is None:
        time.sleep(0.01)
    print("saving", flush=True)
    sys.stdin.readline()
print("saved by", stop.name)
"""
)
DOES_NOT_LISTEN = (
    BEGIN
    + """
handle_signals()
try:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
except KeyboardInterrupt as error:
    print("left by", asked_by(error), flush=True)
    sys.stdin.readline()
"""
)


def start(script: str, ignored: signal.Signals | None = None) -> subprocess.Popen[str]:
    before = f"import signal; signal.signal({int(ignored)}, signal.SIG_IGN)\n" if ignored else ""
    process = subprocess.Popen(
        [sys.executable, "-c", before + script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert line(process) == "ready"
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize(("script", "said"), [(LISTENS, "saving"), (DOES_NOT_LISTEN, "left by {name}")])
def test_signals_that_follow_the_first_break_nothing(script: str, said: str, number: signal.Signals) -> None:
    process = start(script)
    process.send_signal(number)
    assert line(process) == said.format(name=number.name)
    for other in (number, signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        process.send_signal(other)
    rest, errors = process.communicate("go on\n", timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert rest == (f"saved by {number.name}\n" if script is LISTENS else "")


END = (
    BEGIN
    + """
class Late:
    def __del__(self):  # when the interpreter takes its modules down
        print("ready", flush=True)
        sys.stdin.readline()
handle_signals()
ebmscale.stop.late = Late()
sys.exit(130)
"""
)


def test_a_signal_while_the_interpreter_ends_changes_no_exit_code() -> None:
    process = start(END)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
    assert process.communicate("go on\n", timeout=60)[1] == ""
    assert process.returncode == 130


def test_a_ctrl_c_that_is_meant_ends_the_process_at_once() -> None:
    process = start(LISTENS.replace("handle_signals()", "handle_signals(); ebmscale.stop.DELIBERATE_S = 0.0"))
    process.send_signal(signal.SIGTERM)
    assert line(process) == "saving"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "stopped: ended at once, without saving\n"


def test_what_nohup_ignores_stays_ignored() -> None:
    process = start(LISTENS, ignored=signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert line(process) == "saving"
    assert process.communicate("go on\n", timeout=60)[0] == "saved by SIGTERM\n"


def test_a_program_that_uses_the_library_gets_its_handlers_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        with StopSignal().listening() as outer:
            with StopSignal().listening() as inner:
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
        assert inner.name == "SIGTERM"
        assert outer.name is None  # the second signal is the same request
        assert signal.getsignal(signal.SIGTERM) is before


def test_the_signal_is_named_where_python_wrapped_the_interrupt():
    wrapped = KeyboardInterrupt("decoding with 'utf-8-sig' codec failed (KeyboardInterrupt: SIGTERM)")
    wrapped.__cause__ = KeyboardInterrupt("SIGTERM")
    assert asked_by(wrapped) == "SIGTERM"
    assert asked_by(KeyboardInterrupt()) == "SIGINT"
