"""What a command says, to people or to programs, and how it ends."""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter, Token
from rich.console import Console

from ..errors import UserError
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
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is no whole number.") from None


Whole = Annotated[int, Parameter(converter=whole_number)]
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

    def facts(self, **facts: Any) -> None:
        if self.as_json and not self.quiet:
            print(json.dumps(facts, allow_nan=False), flush=True)  # JSON has no NaN, and other readers stop at it


def complain(report: Report, message: str, code: int, **facts: Any) -> SystemExit:
    """Say what went wrong; to be raised: the command then ends with the exit status `code`."""
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
    if report.as_json and not report.quiet:
        report.facts(event="error", message=message, exit_code=code, **facts)
    return SystemExit(code)


@contextmanager
def failing(report: Report, code: int = FAILED) -> Iterator[None]:
    """Turn errors that are meant for the user into a sentence and the exit status `code`, an interrupt into its own.

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
        message = str(error) if isinstance(error, UserError | OSError) else _want_of_memory(error)
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
