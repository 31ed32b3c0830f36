"""Running a training so that nothing learnt is lost, whatever ends it: a stream of events, and a folder."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..signals import SIGNALS
from .evaluation import Evaluated
from .folder import RunFolder
from .record import Record
from .training import Step, Training
from .verdict import Verdict

log = logging.getLogger("textinv")

FIRST_STEPS = 3  # tell how long steps take
SLOW = 10  # seconds a step


@dataclass(frozen=True)
class Saved:
    """A copy has been written, as it is every `save_every` steps."""

    step: int
    path: Path


@dataclass(frozen=True)
class Paused:
    """A step is done, and it, with all that the training can go on from, is in the folder: the time for what takes long
    and may be broken off. learnt: see `Learnable.snapshot`."""

    learnt: Any


@dataclass(frozen=True)
class Ended:
    """The training is over.

    learnt: see `Learnable.snapshot`. losses: one a step, those before it was gone on with included. path: a copy of it,
    in the run's folder or, where that could not be written, elsewhere; None where none could be written anywhere.
    best: what had been learnt when the fixed loss was lowest, and best_path: the copy of it in the run's folder; None
    where that never was lower than before the first step, or the copy could not be written. verdict: what to think of
    what was learnt, None where nobody has looked.
    """

    learnt: Any
    losses: list[float]
    path: Path | None
    best: Any = None
    best_path: Path | None = None
    verdict: Verdict | None = None


def duration(seconds: float) -> str:
    """`59 s`, `1 min 01 s`, `2 h 03 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


@contextmanager
def _heeding_one_interrupt() -> Iterator[None]:
    """For the length of the block, once Ctrl-C, SIGTERM or SIGHUP has ended it, ignore more of them: what was learnt is
    being written. They only ever reach the main thread; elsewhere this does nothing."""
    handlers: dict[int, Any] = {}

    def listen(handler: Any) -> None:
        for number in handlers:
            signal.signal(number, handler)

    def heed(number: int, frame: Any) -> None:
        listen(signal.SIG_IGN)  # before anything else, as the second may come at once
        handlers[number](number, frame)
        listen(heed)  # that one did not mean to end anything

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            # Neither one that was not set from Python, which could not be put back, nor one that does nothing.
            if callable(handler := signal.getsignal(number)):
                handlers[number] = handler
    listen(heed)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _advise(training: Training, pace: float) -> None:
    """Say once what would be quicker, where steps take long; pace: seconds a step."""
    if training.device.type == "cpu" and pace >= SLOW:
        log.warning(
            f"textinv: a step takes {duration(pace)} on this CPU. Quicker are smaller pictures (half the width and "
            "height take about a quarter of the time), fewer of them a step (batch_size times gradient_accumulation), "
            "and a GPU."
        )


def _tell(found: Evaluated, training: Training) -> None:
    name, is_lowest = training.learnable.name, found.is_best and len(training.evaluations) > 1
    lowest = ", the lowest so far" if is_lowest else ""
    log.info(f"textinv: {name}, step {found.step}, fixed loss {found.loss:.4f}{lowest}")
    if training.has_learnt_enough and found.step < training.last_step:
        log.info(
            f"textinv: {name} ends at step {found.step} of {training.last_step}: the fixed loss no longer falls "
            f"(early_stop {training.settings.early_stop})."
        )


def run(
    training: Training, folder: RunFolder | None, is_pause: Callable[[int], bool] = lambda step: False
) -> Generator[Step | Evaluated | Saved | Paused | Ended, None, None]:
    """Run a training to its end, recording everything in `folder`; None for processes of a shared training but the
    first, which write nothing and log nothing. is_pause: whether to pause after a step that is not the last.

    A training with a state goes on from there, and so do the losses. To finish early, `Training.finish()`; to stop,
    close the iterator. Whatever ends the run after its first step, what was learnt by the last good one is kept in the
    folder, or wherever that can be written, with the losses and, unless it has diverged, the exact state. A
    TrainingError's message says where, and copies of what caused it are taken back. In the main thread, a second
    Ctrl-C, SIGTERM or SIGHUP is ignored until then. Raises what `Training.advance` and `Training.confirm` do.
    """
    record = Record(training, folder)
    settings, name = training.settings, training.learnable.name
    log_every = min(max(10, settings.steps // 50), 100)
    first_step = training.step

    def evaluated() -> Iterator[Evaluated]:
        if training.is_due:
            found = training.evaluate()
            record.write_fixed_losses()
            if folder is not None:
                _tell(found, training)
            yield found

    with _heeding_one_interrupt():
        try:
            yield from evaluated()
            started = time.monotonic()
            while not training.is_over:
                step = training.advance()
                record.add(step)
                steps = step.step - first_step
                pace = (time.monotonic() - started) / steps
                if folder is not None and steps == FIRST_STEPS:
                    _advise(training, pace)
                if folder is not None and (step.step % log_every == 0 or training.is_over):
                    recent = record.losses[-log_every:]
                    log.info(
                        f"textinv: {name}, step {step.step}/{step.last_step}, loss {step.loss:.4f} "
                        f"(mean of {len(recent)}: {sum(recent) / len(recent):.4f}), rate {step.learning_rate:g}, "
                        f"{pace:.2f} s a step, {duration(pace * (step.last_step - step.step))} left"
                    )
                yield step
                saved = record.save() if settings.save_every and step.step % settings.save_every == 0 else None
                if saved:
                    yield Saved(step.step, saved)
                yield from evaluated()
                if saved:  # behind the evaluation, which may make this step the best
                    record.prune()
                if is_pause(step.step) and not training.is_over:
                    record.save_state()
                    yield Paused(step.learnt)
                else:
                    record.save_state_when_due()
            training.confirm()
            best_path, path = record.save_best(), record.rescue()
            record.save_state()
        except BaseException as stopped:
            if isinstance(stopped, TrainingError):
                record.withdraw()
            record.save_best()
            record.rescue()
            record.save_state()
            if folder is None:
                raise
            kept = record.kept()
            log.warning(f"textinv: stopped at step {training.step}. {kept}")
            if isinstance(stopped, TrainingError):
                raise TrainingError(f"{stopped} {kept}") from stopped
            raise
    if folder is not None and not (path and path.is_relative_to(folder.path)):
        log.warning(f"textinv: {record.kept()}")
    yield Ended(training.learnt(), record.losses, path, training.best(), best_path)
