"""The process of a command: how it is ended from outside, and streams that end nothing themselves."""

import errno
import io
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ..signals import SIGNALS

# Wrappers and launchers pass on a signal to children that have it already, as from the terminal: what comes within so
# many seconds was one.
ONE_PRESS = 0.5


class Signalled(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the process is to end as it does after Ctrl-C."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def status_of(stopped: KeyboardInterrupt) -> int:
    """The exit status of a command that was stopped, as shells count: 130 after Ctrl-C, 143 after SIGTERM, 129 after
    SIGHUP."""
    return 128 + (stopped.number if isinstance(stopped, Signalled) else signal.SIGINT)


def heed_signals() -> None:
    """From now on SIGTERM and SIGHUP raise as Ctrl-C does, unless they are ignored, as under `nohup`.

    To be called from the main thread.
    """
    last = -math.inf

    def end(number: int, _: object) -> None:
        nonlocal last
        if time.monotonic() - last <= ONE_PRESS:  # else it would break off what the first one has begun
            return
        last = time.monotonic()
        raise Signalled(number)

    for number in SIGNALS:
        if number != signal.SIGINT and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


@contextmanager
def heeding_the_first(finish: Callable[[], bool], said: str) -> Iterator[None]:
    """For the length of the block the first Ctrl-C calls `finish` and, where that returns True, says so on stderr;
    where it returns False, and from the second one on, it does what it does outside. Nothing where it is ignored.

    finish: called in the midst of anything else this thread does. To be called from the main thread.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return
    first: list[float] = []

    def heed(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if first and now - first[0] <= ONE_PRESS:
            return
        if first or not finish():
            before(number, frame)
            return
        first.append(now)
        with suppress(OSError):  # past the stream, in which this thread may be writing right now
            os.write(2, said.encode())

    signal.signal(signal.SIGINT, heed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def ignore_signals() -> None:
    """From now on heed none of these, Ctrl-C included. To be called from the main thread."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Lasting(io.RawIOBase):
    """A stream that can always be written to. What its own end does not take is dropped: hours of training do not
    depend on who reads of them.

    error: why something was dropped, unless that is because the reader has gone and wants no more.
    """

    def __init__(self, raw: Any):
        self._raw = raw
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            # Another program at the same terminal may have set it so that it takes nothing rather than wait.
            while (written := self._raw.write(data)) is None:
                select.select([], [self._raw], [])
            return written
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # a pipe, or a terminal, that has been closed
                self.error = self.error or error
            return len(data)

    def isatty(self) -> bool:
        return self._raw.isatty()

    def fileno(self) -> int:
        return self._raw.fileno()


def lasting_streams() -> list[_Lasting]:
    """Make stdout and stderr take any text, whatever their encoding and whether anybody is there to read it: what the
    encoding lacks is written as an escape. Returns what lies below, for `status_written`."""
    made = []
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # else nobody reads it, or another program has put its own there
            stream.flush()
            raw = _Lasting(getattr(stream.buffer, "raw", stream.buffer))  # without a buffer it is raw itself
            lasting = io.TextIOWrapper(
                io.BufferedWriter(raw),
                stream.encoding,
                "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)
            made.append(raw)
    return made


def status_written(streams: Iterable[_Lasting]) -> int:
    """The exit status of a command that has done all else: 1 where something of what it said could not be written, as
    on a full disk; says so."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    lost = [raw.error for raw in streams if raw.error]
    if lost:
        print(f"Not all of what this command had to say could be written: {lost[0].strerror}.", file=sys.stderr)
    return int(bool(lost))
