"""Where progress is shown."""

import io
import sys

import pytest

pytest.importorskip("cyclopts")

from textinv_core.commands.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_the_terminal_leaves_stdout_to_those_who_read_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress() as bar:
        bar.add_task("drawing", total=1, state="soon")
        print('{"event": "step"}')
    assert capsys.readouterr().out == '{"event": "step"}\n'
    assert "drawing" in sys.stderr.getvalue() and "soon" in sys.stderr.getvalue()


def test_what_is_said_meanwhile_stands_above_the_bar_where_both_are_the_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", Terminal())
    own = sys.stdout
    with progress() as bar:
        bar.add_task("drawing", total=1, state="")
        print("said")
    assert own.getvalue() == "" and "said" in sys.stderr.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_elsewhere_nothing_is_drawn(monkeypatch, capsys, is_terminal):
    if is_terminal:
        monkeypatch.setattr(sys, "stderr", Terminal())
    with progress(quiet=is_terminal) as bar:
        bar.add_task("drawing", total=1, state="")
    assert (sys.stderr.getvalue() if is_terminal else capsys.readouterr().err) == ""
