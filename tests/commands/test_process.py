"""How a command's process is ended from outside, and what it says to whoever is there."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.processes import environment
from textinv_core.commands import process

ON_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these signals nor /dev/full")


def run(code: str, *, before: str = "", **options) -> subprocess.CompletedProcess:
    """What becomes of Python that prepares itself as the command does, and then does `code`; `before` comes first."""
    program = f"import os, signal, sys\nfrom textinv_core.commands import process\n{before}\n"
    program += f"process.heed_signals()\nstreams = process.lasting_streams()\n{code}\n"
    program += "sys.exit(process.status_written(streams))"
    more = options.pop("more", {})
    return subprocess.run(
        [sys.executable, "-c", program],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment(**more), "timeout": 60, **options},
    )


@ON_POSIX
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_as_ctrl_c_does(name):
    catch = f"""
try:
    signal.raise_signal(signal.{name})
except KeyboardInterrupt as stopped:
    print(process.status_of(stopped), process.status_of(KeyboardInterrupt()))
"""
    number = getattr(signal, name)
    done = run(catch, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))  # `nohup` has SIGHUP ignored
    assert done.stdout.split() == [str(128 + number).encode(), b"130"]


@ON_POSIX
def test_what_is_ignored_stays_so():
    nohup = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    assert run("signal.raise_signal(signal.SIGHUP); print('there')", before=nohup).stdout == b"there\n"


CTRL_C = """
import time
def pressed(): signal.raise_signal(signal.SIGINT)
def finish():
    print("finish")
    return {can}
before = signal.getsignal(signal.SIGINT)
try:
    with process.heeding_the_first(finish, "The last one."):
        pressed(); pressed(); print("on")
        if {again}:
            time.sleep({wait}); pressed(); print("never")
except KeyboardInterrupt:
    print("stopped")
print(signal.getsignal(signal.SIGINT) is before)
"""


@ON_POSIX
@pytest.mark.parametrize(
    ("can", "again", "printed", "said"),
    [
        (True, False, "finish on True", "The last one."),
        (True, True, "finish on stopped True", "The last one."),
        (False, False, "finish stopped True", ""),
    ],
)
def test_the_first_ctrl_c_finishes_what_can_be_and_the_next_stops(can, again, printed, said):
    """What comes twice at once is one: wrappers pass it on to those who have it already."""
    code = CTRL_C.format(can=can, again=again, wait=process.ONE_PRESS + 0.1)
    done = run(code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert (done.stdout.decode().split(), done.stderr.decode()) == (printed.split(), said)


@ON_POSIX
def test_ctrl_c_that_is_ignored_finishes_nothing():
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert run(CTRL_C.format(can=True, again=False, wait=0), before=ignored).stdout.split() == [b"on", b"True"]


@ON_POSIX
def test_ctrl_c_in_the_midst_of_writing_finishes():
    """A signal's handler that used the stream too would fail."""
    code = """
import threading, time
def press():
    for _ in range(20):
        time.sleep(0.02); os.kill(os.getpid(), signal.SIGINT)
with process.heeding_the_first(lambda: True, "The last one."):
    thread = threading.Thread(target=press); thread.start()
    while thread.is_alive():
        print("x" * 100, file=sys.stderr, flush=True)
    thread.join()
"""
    done = run(code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert done.returncode == 0 and done.stderr.count(b"The last one.") == 1


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_takes_what_its_encoding_lacks(stream):
    said = run(f"print('ü 🙂 \\udcff é', file=sys.{stream})", more={"PYTHONIOENCODING": "ascii:strict"})
    assert (said.returncode, getattr(said, stream).rstrip()) == (0, b"\\xfc \\U0001f642 \\udcff \\xe9")


@pytest.mark.parametrize("flags", [[], ["-u"]])
def test_output_comes_in_order_and_whole(flags):
    code = "from textinv_core.commands import process\nimport sys\nstreams = process.lasting_streams()\n"
    code += "print('one'); print('two', file=sys.stderr, flush=True); print('three', end='')\n"
    code += "process.status_written(streams)"
    ended = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, env=environment())
    assert (ended.stdout, ended.stderr) == ("one\nthree", "two\n")


def test_a_reader_that_has_gone_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    said = run("print('x' * 100_000, flush=True); print('still there', file=sys.stderr)", stdout=writer)
    os.close(writer)
    assert (said.returncode, said.stderr.strip()) == (0, b"still there")


@ON_POSIX
def test_a_reader_that_is_slow_is_waited_for_though_the_pipe_is_set_not_to():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    read = []
    with open(reader, "rb") as end:
        thread = threading.Thread(target=lambda: (time.sleep(0.5), read.append(end.read())))
        thread.start()
        said = run("for _ in range(300): print('x' * 1000, flush=True)", stdout=writer)
        os.close(writer)
        thread.join()
    assert (said.returncode, said.stderr, len(read[0])) == (0, b"", 300 * 1001)


@ON_POSIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_what_a_full_disk_does_not_take_ends_nothing_but_is_said():
    with open("/dev/full", "wb") as full:
        said = run("print('x', flush=True); print('still there', file=sys.stderr)", stdout=full)
    assert said.returncode == 1
    assert said.stderr.splitlines()[0] == b"still there" and b"No space left on device" in said.stderr


def test_there_may_be_no_streams():
    assert run("", before="sys.stdout = sys.stderr = None").returncode == 0
