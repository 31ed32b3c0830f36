"""Finding the folder of a run that was begun earlier, and what there is in it to go on from."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..errors import UserError
from .evaluation import has_learnt_enough
from .folder import RunFolder
from .identity import differences, identity
from .run import Ended
from .settings import TrainSettings
from .verdict import Verdict

log = logging.getLogger("textinv")

NEARLY = 3  # so many differences still make it worth saying which


def found(
    root: Path, name: str, about: Mapping[str, Any], settings: TrainSettings, last_step: int, stack: ExitStack
) -> tuple[RunFolder, dict[str, Any] | Ended | None]:
    """The folder of the run that `about` describes, as `settings.resume` says a new one or an earlier one; and what
    there is in it already: how it ended, a state to go on from, or None for nothing.

    The folder is claimed as long as `stack` lasts. Says in the log which it is. Raises UserError where a run is
    required that is not there, OSError where no folder can be made.
    """
    folders = [] if settings.resume == "fresh" else RunFolder.all(root, name)
    described = [(folder, folder.settings()) for folder in folders]
    for folder in (folder for folder, told in described if told.get("identity") == identity(about)):
        if not stack.enter_context(folder.claimed()):
            log.info(f"textinv: {name}, the run in {folder.path} is being trained by another process.")
            continue
        if ended := _ended(folder, name, settings, last_step):
            log.info(
                f"textinv: {name} has been trained on this already, and the embedding of step {ended.learnt.step} is "
                f"taken from {folder.path}."
            )
            return folder, ended
        state = folder.newest_state()
        if state is not None and state["step"] <= last_step:
            log.info(f"textinv: {name} goes on from step {state['step']} of the run in {folder.path}.")
            return folder, state
        if state is None and settings.resume == "auto":
            log.info(f"textinv: {name} begins anew in {folder.path}, where no state was kept yet.")
            return folder, None
        if state is not None:
            log.info(
                f"textinv: {name}, the run in {folder.path} is at step {state['step']} already, and has no copy of "
                f"step {last_step}."
            )
    nearest = _nearest(about, described)
    if settings.resume == "required":
        raise UserError(
            f"There is no run of {name!r} to go on with: none in {str(root / name)!r} has these pictures, captions, "
            f"model, embedding and settings and a state.{nearest} Set resume to auto to begin a new one."
        )
    folder = RunFolder.new(root, name)
    stack.enter_context(folder.claimed())
    if nearest:
        log.info(f"textinv: {name}, a new run.{nearest}")
    return folder, None


def _ended(folder: RunFolder, name: str, settings: TrainSettings, last_step: int) -> Ended | None:
    """How a run ended, if it was at `last_step`, has come past it and kept a copy, or had learnt enough before."""
    end = folder.settings().get("ended")
    step = end.get("step") if isinstance(end, dict) else None
    if not isinstance(step, int):
        step = folder.newest_state_step()  # where it was killed, it has come as far as that
    evaluations = [row for row in folder.fixed_losses() if row[0] <= last_step]
    if end and step < last_step and has_learnt_enough([loss for _, loss in evaluations], settings):
        last_step = step
    learnt = folder.load(name, last_step)
    if step < last_step or learnt is None or learnt.step != last_step:
        return None
    losses = [row.loss for row in folder.losses() if row.step <= last_step]
    best = min(evaluations[1:], key=lambda row: row[1], default=(None, 0.0))[0]
    best = None if best is None else folder.load(name, best)
    best_path = None if best is None else folder.copy(name, best.step)
    judged = Verdict.read(folder.settings().get("result")) if step == last_step else None
    return Ended(learnt, losses, folder.copy(name, last_step), best, best_path, judged)


def _nearest(about: Mapping[str, Any], described: list[tuple[RunFolder, dict[str, Any]]]) -> str:
    """What the run that has the least otherwise has otherwise, as a sentence; "" where all have much."""
    others = [(differences(about, told), folder) for folder, told in described if "identity" in told]
    others = [(different, folder) for different, folder in others if 0 < len(different) <= NEARLY]
    if not others:
        return ""
    different, folder = min(others, key=lambda each: len(each[0]))
    return f" In {folder.path} {', '.join(different)}."
