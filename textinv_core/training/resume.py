"""Finding the folder of a run that was begun earlier, and what there is in it to go on from."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..embedding import Embedding
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
    root: Path,
    embedding: Embedding,
    about: Mapping[str, Any],
    settings: TrainSettings,
    last_step: int,
    stack: ExitStack,
) -> tuple[RunFolder, dict[str, Any] | Ended | None]:
    """The folder of the run that `about` describes, as `settings.resume` says a new one or an earlier one; and what
    there is in it already: how it ended, a state to go on from, or None for nothing. Of several that fit, one that has
    ended, else the one that has come farthest.

    embedding: as it is before. The folder is claimed as long as `stack` lasts. Says in the log which it is. Raises
    UserError where a run is required that is not there, OSError where no folder can be made.
    """
    name = embedding.name
    folders = [] if settings.resume == "fresh" else RunFolder.all(root, name)
    described = [(folder, folder.settings()) for folder in folders]
    for folder in (folder for folder, told in described if not told and folder.newest_state_step()):
        log.warning(
            f"textinv: {name}, the settings.json in {folder.path} cannot be read, so nobody can tell whether that is "
            "the same run. It is left alone."
        )
    same = [folder for folder, told in described if told.get("identity") == identity(about)]
    own = [folder for folder in same if stack.enter_context(folder.claimed())]
    for folder in own:
        if ended := _ended(folder, embedding, settings, last_step):
            step = ended.learnt.step
            enough = f" By early_stop {settings.early_stop} it had learnt enough there; off goes on."
            early = enough if step < last_step else ""
            log.info(
                f"textinv: {name} has been trained on this already, and the embedding of step {step} is taken from "
                f"{folder.path}.{early}"
            )
            return folder, ended
    states = [(folder.newest_state(), folder) for folder in own]
    begun = [(state, folder) for state, folder in states if state is not None]
    if fitting := [each for each in begun if each[0]["step"] <= last_step]:
        state, folder = max(fitting, key=lambda each: each[0]["step"])
        log.info(f"textinv: {name} goes on from step {state['step']} of the run in {folder.path}.")
        return folder, state
    for state, folder in begun:
        log.info(
            f"textinv: {name}, the run in {folder.path} is at step {state['step']} already, and has no copy of "
            f"step {last_step}."
        )
    for folder in (folder for state, folder in states if state is None):
        if "ended" in folder.settings() or folder.newest_state_step():
            log.warning(
                f"textinv: {name}, the run in {folder.path} has no whole state any more, so it cannot be gone on with, "
                f"and is left alone. Its newest copy is {folder.newest() or 'gone'}; that can be trained further as "
                "the embedding to begin with."
            )
        elif settings.resume == "auto":
            log.info(f"textinv: {name} begins anew in {folder.path}, where no state was kept yet.")
            return folder, None
    nearest = _nearest(about, described)
    if others := [folder for folder in same if folder not in own]:
        nearest = f" The one in {others[0].path} is being trained by another process."
    if settings.resume == "required":
        raise UserError(
            f"There is no run of {name!r} to go on with: none in {str(root / name)!r} that is free has these pictures, "
            f"captions, model, embedding and settings and a state.{nearest} Set resume to auto to begin a new one."
        )
    folder = RunFolder.new(root, name)
    stack.enter_context(folder.claimed())
    if nearest:
        log.info(f"textinv: {name}, a new run in {folder.path}.{nearest}")
    return folder, None


def _ended(folder: RunFolder, embedding: Embedding, settings: TrainSettings, last_step: int) -> Ended | None:
    """How a run ended, if it was at `last_step`, has come past it and kept a copy, or had learnt enough before."""
    told, name = folder.settings(), embedding.name
    end = told.get("ended")
    step = end.get("step") if isinstance(end, dict) else None
    evaluations = [row for row in folder.fixed_losses() if row[0] <= last_step]
    if not isinstance(step, int):
        # Where it was killed, it has come as far as its states. At the last one its end may still have to be made.
        step = folder.newest_state_step() - 1
    elif step < last_step and has_learnt_enough([loss for _, loss in evaluations], settings):
        last_step = step
    learnt = folder.load(name, last_step)
    if step < last_step or learnt is None or learnt.step != last_step:
        return None
    losses = [row.loss for row in folder.losses() if row.step <= last_step]
    best_step, _ = min(evaluations, key=lambda row: row[1], default=(0, 0.0))
    best = best_path = None
    if best_step > (embedding.step or 0):
        best, best_path = folder.load(name, best_step), folder.copy(name, best_step)
        if best is None and folder.newest_state_step() == last_step:
            return None  # in whose state it is
        if best is None:
            best_path = None
            log.warning(f"textinv: {name}, there is no copy of step {best_step}, the best until step {last_step}.")
    judged = Verdict.read(told.get("result")) if step == last_step else None
    return Ended(learnt, losses, folder.copy(name, last_step), best, best_path, judged)


def _nearest(about: Mapping[str, Any], described: list[tuple[RunFolder, dict[str, Any]]]) -> str:
    """What the run that has the least otherwise has otherwise, as a sentence; "" where all have much."""
    others = [(differences(about, told), folder) for folder, told in described if "identity" in told]
    others = [(different, folder) for different, folder in others if 0 < len(different) <= NEARLY]
    if not others:
        return ""
    different, folder = min(others, key=lambda each: len(each[0]))
    return f" In {folder.path} {', '.join(different)}."
