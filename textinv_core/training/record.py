"""What has happened in a run, on its way into the folder."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .folder import LossRow, RunFolder
from .training import Step, Training

log = logging.getLogger("textinv")

# A state is written after so many steps, if that takes no more than this share of their time, and whenever so many
# seconds have passed.
STATE_STEPS = 100
STATE_SHARE = 0.01
STATE_SECONDS = 60.0


class Record:
    """What has happened in a run, and what is kept of it. A full disk costs copies, never the training.

    Where the training goes on from a state, so do the losses in the folder.
    """

    def __init__(self, training: Training, folder: RunFolder | None):
        self._training, self._folder = training, folder
        self.losses: list[float] = []
        if folder is not None:
            folder.rewind(training.step)
            if training.step > training.learnable.step:
                self.losses = [row.loss for row in folder.losses()]
        self._state_step, self._state_time, self._state_cost = training.step, time.monotonic(), 0.0
        self._unwritten: list[LossRow] = []
        self._saved: tuple[int, Path] | None = None
        self._has_complained = False

    def add(self, step: Step) -> None:
        self.losses.append(step.loss)
        if self._folder is None:
            return
        training = self._training
        batches = (step.step - 1) * training.settings.gradient_accumulation
        epoch, batch = divmod(batches, training.batches_an_epoch)
        place = batch // training.settings.gradient_accumulation
        self._unwritten.append(LossRow(step.step, epoch, place, step.loss, step.learning_rate))
        self.write_losses()

    def save_state_when_due(self) -> None:
        """To be called when all else of a step is kept: what goes on from there makes none of it again."""
        steps, seconds = self._training.step - self._state_step, time.monotonic() - self._state_time
        if (steps >= STATE_STEPS and self._state_cost <= STATE_SHARE * seconds) or seconds >= STATE_SECONDS:
            self.save_state()

    def save_state(self) -> None:
        """Write what the training can go on from, unless it is there."""
        training, started = self._training, time.monotonic()
        state = training.state() if self._folder is not None and self._state_step != training.step else None
        if self._folder is None or state is None:
            return
        self.write_losses()  # those that there was no room for before
        with self._complaining():
            self._folder.save_state(state)
            self._state_step = training.step
        self._state_time = time.monotonic()
        self._state_cost = self._state_time - started

    def write_losses(self) -> None:
        if self._folder is not None and self._unwritten:
            with self._complaining():
                self._folder.append_losses(self._unwritten)
                self._unwritten = []

    def write_fixed_losses(self) -> None:
        if self._folder is not None:
            with self._complaining():
                self._folder.write_fixed_losses(self._training.evaluations)

    def save_best(self) -> Path | None:
        """Keep what had been learnt by the best step in the folder; None where that cannot be, or is nothing."""
        best = self._training.best()
        if self._folder is None or best is None:
            return None
        path = self._folder.copy(best.name, best.step)
        if not path.is_file():
            try:
                self._folder.save(best)
            except OSError as error:
                self._complain(error)
                return None
            self._saved = None  # the last one is to be the newest copy again
        return path

    def rescue(self) -> Path | None:
        """Keep all that was learnt, whatever was being written when the run was stopped, wherever that can be; returns
        where, None for nowhere, and where that is nothing."""
        path, learnt = self.save(), self._training.learnt()
        if path is None and self._folder is not None and learnt is not None:
            path = self._folder.rescue(learnt)
            self._saved = (learnt.step, path) if path else self._saved
        if self._folder is not None and self._unwritten:
            with self._complaining():
                self._folder.cut_losses(self._unwritten[0].step - 1)
                self.write_losses()
        return path

    def withdraw(self) -> None:
        """Take back copies of what has turned out to be no good."""
        learnt = self._training.learnt()
        if self._folder is not None:
            with self._complaining():
                self._folder.withdraw(self._training.learnable.step if learnt is None else learnt.step)

    def save(self) -> Path | None:
        """Keep what was learnt so far in the folder; None where that cannot be, or is nothing."""
        learnt = self._training.learnt()
        if self._folder is None or learnt is None:
            return None
        if self._saved is None or self._saved[0] != learnt.step:
            try:
                self._saved = learnt.step, self._folder.save(learnt)
            except OSError as error:
                self._complain(error)
                return None
        return self._saved[1]

    def prune(self) -> None:
        """Leave only as many copies as are to be kept, and the best."""
        settings, best = self._training.settings, self._training.best()
        if self._folder is not None and settings.keep:
            with self._complaining():
                self._folder.prune(settings.save_every, settings.keep, [best.step] if best else [])

    def kept(self) -> str:
        """What has become of all that was learnt, in a sentence."""
        learnt = self._training.learnt()
        if learnt is None:
            return "Nothing was learnt before."
        if self._saved is not None and self._saved[0] == learnt.step:
            return f"The embedding of step {learnt.step} is kept in {self._saved[1]}."
        return f"The embedding of step {learnt.step} could not be kept; {self._newest()}."

    def _newest(self) -> str:
        newest = self._folder and self._folder.newest()
        return f"the newest copy is {newest}" if newest else "there is no copy"

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        """What cannot be written in the block is left, and said once."""
        try:
            yield
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning(
                f"textinv: cannot write into the run's folder: {error}. What was learnt is in memory, and "
                f"{self._newest()}. The training goes on, and tries again; make room on the disk meanwhile."
            )
