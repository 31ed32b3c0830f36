"""The command as a whole: help, usage, and what it does without its extra."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cyclopts")

import textinv_core
from tests.processes import environment
from textinv_core.commands import app

ROOT = Path(__file__).parents[2]
WORLD = "textinv_core/toyworld"
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
def test_examples_can_be_copied_from_a_narrow_terminal(textinv, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = [line.strip() for line in textinv(command, "--help").out.splitlines()]
    lines = (inspect.getdoc(app[command].default_command) or "").splitlines()
    examples = [line.strip() for line in lines if line.startswith(" " * 4)]
    assert not [line for line in examples if line not in shown]
    assert not [line for line in examples if line.endswith("\\")], "help is padded with spaces, which undo it"
    assert examples or command == "demo"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_all_there_in_ascii(command):
    narrow = environment(PYTHONIOENCODING="ascii", LC_ALL="C", COLUMNS="80")
    arguments = [sys.executable, "-m", "textinv_core", command, "--help"]
    done = subprocess.run(arguments, env=narrow, cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.isascii() and b"--json" in done.stdout and b"?" not in done.stdout


def test_help_says_what_is_required(textinv):
    shown = " ".join(textinv("train", "--help").out.replace("│", " ").split())
    assert shown.count("Required, here or in the settings file.") == 2 and "Required, but with --from" in shown
    assert "[required]" in textinv("apply", "--help").out


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
    ("missing", "arguments"),
    [
        ("cyclopts", ["--help"]),
        ("diffusers", ["apply", "a", "--model", f"{WORLD}/toyworld.safetensors", "--model-config", WORLD]),
    ],
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
