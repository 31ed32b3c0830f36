"""What a command says, to people or to programs, and how it ends."""

import errno
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter, Token
from rich.console import Console

from ..errors import Naming, SettingError, UserError
from .process import status_of

FAILED, USAGE = 1, 2
AsJson = Annotated[
    bool,
    Parameter(
        name="--json", negative=(), show_default=False, help="Say on stdout what happens, one JSON object a line."
    ),
]


def whole_number(_: type, tokens: Sequence[Token]) -> int:
    """A flag's value, where cyclopts would round 1.5 to 2."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number.{without_comma(text)}") from None


def number(_: type, tokens: Sequence[Token]) -> float:
    """A flag's value, which neither `nan` nor `inf` can be."""
    text = tokens[0].value
    try:
        if math.isfinite(value := float(text)):
            return value
    except ValueError:
        pass  # said below
    raise ValueError(f"{text!r} is no number.{without_comma(text)}")


def without_comma(text: str) -> str:
    """What to write in place of a number with a comma in it, as a sentence; "" for any other text."""
    try:
        return f" If a decimal point was meant, write {float(text.replace(',', '.')):g}." if "," in text else ""
    except ValueError:
        return ""


Whole = Annotated[int, Parameter(converter=whole_number)]
Float = Annotated[float, Parameter(converter=number)]
# The flags that are not called after their setting.
FLAGS = {"folder": "--images", "mode": "--shuffle", "per": "--shuffle-per"}
# So long the other processes of a shared training leave it to the first to say what has failed: most often the same,
# and launchers end them meanwhile.
PATIENCE = 5.0  # seconds
# What the system's own words leave open.
REASONS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "it is a folder, and a file is needed",
    errno.ENOTDIR: "a file stands where a folder should be",
    errno.EACCES: "it may not be read or written; look at its permissions",
    errno.ENAMETOOLONG: "the name is too long",
}
INSTALL = 'pip install "textinv[standalone]"'


@dataclass(frozen=True)
class Report:
    """Where a command's answers go: text to people on stdout, or with `as_json` facts to programs on stdout, one JSON
    object a line, and the text to stderr.

    quiet: says nothing but failures, as all processes of a shared training but the first.
    """

    as_json: bool = False
    quiet: bool = False

    @property
    def console(self) -> Console:
        return Console(stderr=self.as_json, quiet=self.quiet)

    def say(self, text: str) -> None:
        # Neither colours nor line breaks of its own: paths and commands are there to be copied.
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Say on stderr what went otherwise than may be thought."""
        Console(stderr=True, quiet=self.quiet).print(text, markup=False, highlight=False, soft_wrap=True)

    def facts(self, **facts: Any) -> None:
        if self.as_json and not self.quiet:
            print(json.dumps(facts, allow_nan=False), flush=True)  # JSON has no NaN, and other readers stop at it


def flag(setting: str) -> str:
    """The flag behind which a command takes a setting."""
    if setting.isupper():  # what help calls an argument
        return setting
    return FLAGS.get(setting, "--" + setting.replace("_", "-"))


def sentence(error: BaseException, naming: Naming = flag) -> str:
    """What is wrong, for people; settings are called what `naming` calls them."""
    if isinstance(error, SettingError):
        return error.sentence(naming)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        reason = REASONS.get(error.errno) or (error.strerror or "it failed").lower()
        return f"{os.fsdecode(error.filename)!r} cannot be used: {reason}."
    return str(error)


def complain(report: Report, message: str, code: int, **facts: Any) -> SystemExit:
    """Say what went wrong; to be raised: the command then ends with the exit status `code`."""
    if report.quiet:
        if code not in (FAILED, USAGE):  # an interrupt, which the first process says for all
            return SystemExit(code)
        time.sleep(PATIENCE)
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
    if report.as_json and not report.quiet:
        report.facts(event="error", message=message, exit_code=code, **facts)
    return SystemExit(code)


@contextmanager
def failing(report: Report, code: int = FAILED, naming: Naming = flag) -> Iterator[None]:
    """Turn errors that are meant for the user into a `sentence` and the exit status `code`, an interrupt into its own.

    Any other error is a mistake of ours and keeps its traceback.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("diffusers", "transformers", "msgspec", "tomli"):
            raise
        message = f"This command needs {missing}, which is not installed. Type: {INSTALL}"
        raise complain(report, message, FAILED) from None
    except KeyboardInterrupt as stopped:
        raise complain(report, "Stopped.", status_of(stopped)) from None
    except Exception as error:
        message = sentence(error, naming) if isinstance(error, UserError | OSError) else _want_of_memory(error)
        if message is None:
            raise
        raise complain(report, message, code) from None


def _want_of_memory(error: Exception) -> str | None:
    """What to say where `error` says that memory has run short, else None."""
    if "torch" not in sys.modules:  # which takes seconds to load, and cannot have run out of memory then
        return None
    from ..devices import in_words, is_out_of_memory

    return in_words(error) if is_out_of_memory(error) else None


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Where stderr can show no progress bar, show the trainer's log in its place."""
    log, handler = logging.getLogger("textinv"), logging.StreamHandler()
    if not sys.stderr.isatty():
        log.addHandler(handler)
        log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
