"""The command `textinv`: one file a subcommand, each a thin face of the core.

Nothing here imports torch before a command runs, so that help comes at once.
"""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from .. import __version__
from .apply import apply
from .convert import convert
from .demo import demo
from .inspect import inspect
from .output import USAGE, Report, complain
from .train import train

# Else transformers tells of every part of it that is not installed; none is used here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Else torch's threads spin while they wait for one another. Where others need the cores, or fewer may be used than
# there are, that keeps the one they wait for from its work, and a step takes several times as long, or twenty times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

app = App(
    name="textinv",
    help="Teach a diffusion model a subject or a style from a handful of pictures, and use it in prompts as "
    "embedding:NAME.\n\n`textinv demo` shows it in two minutes; `textinv train --help` explains what to set.",
    help_format="markdown",
    help_flags=["--help"],
    version=f"textinv {__version__}",
    version_flags=["--version"],
    # Of a flag that comes twice the last counts, and lists have no flag that empties them.
    default_parameter=Parameter(allow_repeating=True, negative_iterable=()),
)
for command in (train, apply, inspect, convert, demo):
    app.command(command)


def run(arguments: Sequence[str] | None = None) -> None:
    """Do what `arguments` say, by default those of this process. Ends with SystemExit, of 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # What was typed could not be read, so nobody has found the flag in it.
    report = Report("--json" in arguments, quiet=os.environ.get("RANK", "0") != "0")
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        help_command = " ".join(["textinv", *(error.command_chain or ()), "--help"])
        raise complain(report, f"{error}\nTry: {help_command}", USAGE) from None
