"""Answers to people and programs, and exit statuses."""

import errno
import json
import logging
import signal

import pytest

pytest.importorskip("cyclopts")

from textinv_core.commands.output import PATIENCE, Report, failing, logging_to_stderr, sentence, without_comma
from textinv_core.commands.process import Signalled
from textinv_core.errors import TrainingError, UserError


def status(error, report=None, code=1):
    with pytest.raises(SystemExit) as ended, failing(report or Report(), code):
        raise error
    return ended.value.code


def test_text_goes_to_stdout_and_with_json_to_stderr(capsys):
    Report().say("a [b] c")
    assert capsys.readouterr() == ("a [b] c\n", "")
    Report(as_json=True).say("x")
    Report(as_json=True).facts(event="e", n=1)
    out, err = capsys.readouterr()
    assert (json.loads(out), err) == ({"event": "e", "n": 1}, "x\n")


def test_what_json_does_not_know_is_no_fact():
    with pytest.raises(ValueError, match="JSON"):
        Report(as_json=True).facts(event="e", n=float("inf"))


def test_long_lines_stay_whole(capsys):
    Report().say("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"


def test_a_quiet_one_says_failures_alone_after_a_while(capsys, monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    quiet = Report(as_json=True, quiet=True)
    quiet.say("x")
    quiet.facts(event="e")
    assert capsys.readouterr() == ("", "")
    assert status(UserError("why"), quiet) == 1 and waited == [PATIENCE]
    assert capsys.readouterr() == ("", "why\n")
    assert status(KeyboardInterrupt(), quiet) == 130 and waited == [PATIENCE]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "'a/b' cannot be used: there is no such"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"a"), "'a' cannot be used: it is a folder"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "a file stands where a folder should be"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "'a' cannot be used: no space left on device."),
        (OSError("why"), "why"),
    ],
)
def test_what_the_system_says_is_a_sentence(error, words):
    assert words in sentence(error) and "Errno" not in sentence(error)


@pytest.mark.parametrize(("text", "advice"), [("0,005", "write 0.005."), ("1,5e-3", "write 0.0015."), ("a,b", "")])
def test_a_comma_for_a_decimal_point_is_seen(text, advice):
    assert without_comma(text).endswith(advice) and bool(without_comma(text)) == bool(advice)


@pytest.mark.parametrize("error", [UserError("why"), FileNotFoundError("why"), TrainingError("why")])
def test_what_is_meant_for_the_user_is_a_sentence(error, capsys):
    assert status(error, code=2) == 2
    assert capsys.readouterr().err == "why\n"


def test_with_json_failures_are_facts_too(capsys):
    status(UserError("why"), Report(as_json=True))
    assert json.loads(capsys.readouterr().out) == {"event": "error", "message": "why", "exit_code": 1}


def test_an_interrupt_has_the_status_of_its_signal():
    assert status(KeyboardInterrupt()) == 130
    assert status(Signalled(signal.SIGTERM)) == 143


@pytest.mark.parametrize(
    "error", [ValueError("ours"), KeyError("ours"), RuntimeError("ours"), ModuleNotFoundError("ours", name="ours")]
)
def test_mistakes_of_ours_keep_their_traceback(error):
    with pytest.raises(type(error)), failing(Report()):
        raise error


def test_the_log_takes_the_place_of_the_bar_and_is_as_it_was_afterwards(capsys):
    log = logging.getLogger("textinv")
    before = list(log.handlers)
    with logging_to_stderr():
        log.info("step 5")
    assert "step 5" in capsys.readouterr().err
    assert log.handlers == before


def test_want_of_memory_is_a_sentence_whatever_torch_calls_it(capsys):
    for error in (
        "CUDA error: out of memory",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
    ):
        assert status(RuntimeError(error)) == 1
        said = capsys.readouterr().err
        assert error not in said and "not enough memory" in said and "gradient_checkpointing" in said
