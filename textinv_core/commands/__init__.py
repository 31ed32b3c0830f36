"""The command `textinv`: one file a subcommand, each a thin face of the core.

Nothing here imports torch before a command runs, so that help comes at once.
"""

import os

import typer

from .apply import apply
from .convert import convert
from .demo import demo
from .inspect import inspect
from .train import train

# Else transformers tells of every part of it that is not installed; none is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

app = typer.Typer(
    name="textinv",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Teach a diffusion model a subject or a style from a handful of pictures, and use it in prompts as "
    "embedding:NAME.\n\n`textinv demo` shows it in two minutes; `textinv train --help` explains what to set.",
)
for command in (train, apply, inspect, convert, demo):
    app.command()(command)
