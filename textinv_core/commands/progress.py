"""How far a command has come, as a bar on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .output import Report

if TYPE_CHECKING:
    from ..training.learn import Event

RECENT = 20  # losses in the mean that is shown: single ones say more of their noise level than of progress


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


@contextmanager
def showing(report: Report, name: str, steps: int) -> "Iterator[Callable[[Event], None]]":
    """A progress bar with loss, rate and time left, and JSON for each event, for a function that is given them all."""
    from ..training.evaluation import Evaluated
    from ..training.learn import Encoded, Started
    from ..training.previews import Previewed
    from ..training.run import Saved
    from ..training.training import Step

    recent: list[float] = []
    beginning = time.monotonic()
    with progress(report.quiet) as bar:
        task = bar.add_task(name, total=steps, state="")

        def show(event: "Event") -> None:
            match event:
                case Encoded():
                    bar.update(task, completed=event.done, total=event.pictures, state="pictures encoded")
                case Started():
                    bar.update(task, completed=event.step)
                    report.facts(
                        event="start",
                        name=name,
                        folder=str(event.folder.path if event.folder else ""),
                        pictures=event.pictures,
                        vectors={key: len(rows) for key, rows in event.embedding.vectors.items()},
                        step=event.step,
                        steps=steps,
                    )
                case Step():
                    recent[:] = [*recent[1 - RECENT :], event.loss]
                    state = f"loss {sum(recent) / len(recent):.4f}  rate {event.learning_rate:g}"
                    bar.update(task, completed=event.step, total=event.last_step, state=state)
                    report.facts(
                        event="step",
                        name=name,
                        step=event.step,
                        last_step=event.last_step,
                        loss=event.loss,
                        learning_rate=event.learning_rate,
                        seconds=round(time.monotonic() - beginning, 3),
                    )
                case Evaluated():
                    report.facts(
                        event="evaluated", name=name, step=event.step, fixed_loss=event.loss, is_best=event.is_best
                    )
                case Saved():
                    report.facts(event="saved", name=name, path=str(event.path), step=event.step)
                case Previewed():
                    report.facts(event="preview", name=name, path=str(event.path or ""), step=event.step)

        yield show
