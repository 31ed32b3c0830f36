"""The command as a whole: help, usage, and what it does without its extra."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cyclopts")

import textinv_core

ROOT = Path(__file__).parents[2]
COMMANDS = ("train", "apply", "inspect", "convert", "demo")


def python(code, **more):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, **more)


def test_help_names_every_command(textinv):
    done = textinv("--help")
    assert done.code == 0
    assert all(f" {command} " in done.out for command in COMMANDS)


def test_it_tells_its_version(textinv):
    done = textinv("--version")
    assert (done.code, done.out) == (0, f"textinv {textinv_core.__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(textinv, command):
    done = textinv(command, "--help")
    assert done.code == 0 and "--json" in done.out


def test_the_help_of_train_shows_what_is_in_brackets(textinv):
    # Rich takes such words for colours unless told otherwise.
    assert "[name]" in textinv("train", "--help").out


def test_help_needs_no_torch():
    code = "import sys; from textinv_core.commands import app; sys.exit('torch' in sys.modules)"
    assert python(code).returncode == 0


@pytest.mark.parametrize(("own", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_waiting_threads_sleep_unless_told_otherwise(own, policy):
    code = "import os, textinv_core.commands; print(os.environ['OMP_WAIT_POLICY'])"
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert python(code, env={**others, **own}).stdout.strip() == policy


@pytest.mark.parametrize("arguments", [("fly",), ("train", "--stesp", "5"), ("train", "--steps", "many"), ("inspect",)])
def test_wrong_usage_ends_with_2(textinv, arguments):
    assert textinv(*arguments).code == 2


@pytest.mark.parametrize(
    ("missing", "arguments"), [("cyclopts", ["--help"]), ("diffusers", ["apply", "a", "--model", "m"])]
)
def test_without_its_extra_it_says_what_to_install(missing, arguments):
    done = python(
        f"import sys, runpy; sys.modules[{missing!r}] = None; sys.argv[1:] = {arguments!r}; "
        "runpy.run_module('textinv_core', run_name='__main__')"
    )
    assert done.returncode == 1
    assert 'pip install "textinv[standalone]"' in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--steps", "1.5"],
        ["apply", "a cat", "--model", "m", "--count", "2.5"],
        ["inspect", "f", "--words", "1.5"],
    ],
)
def test_whole_numbers_are_not_rounded(textinv, arguments):
    done = textinv(*arguments)
    assert done.code == 2 and "is no whole number" in done.err
