"""How far a command has come, as a bar on stderr."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def progress(quiet: bool = False) -> Progress:
    """For tasks with a field `state`; draws nothing where stderr is no terminal, or if `quiet`."""
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True, quiet=quiet)
    # What is said on stdout meanwhile would go to the bar's console, above the bar, and past those who read stdout.
    return Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=sys.stdout.isatty())
