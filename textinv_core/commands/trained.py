"""What a training gives, left where it is easily found."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .output import Report
from .plan import Plan

if TYPE_CHECKING:
    from ..embedding import Embedding
    from ..training.folder import RunFolder
    from ..training.verdict import Verdict

TRY_AGAIN = 5  # seconds between tries to write what can be written nowhere


@dataclass(frozen=True)
class Trained:
    """What a training gives, and where its record is. left: how many steps a Ctrl-C has left for another time."""

    embedding: "Embedding"
    losses: list[float]
    folder: "RunFolder | None"
    copy: Path | None  # of the embedding, in the run's folder or elsewhere
    best: "Embedding | None"  # of the lowest fixed loss
    best_copy: Path | None
    verdict: "Verdict | None"
    left: int


def finish(plan: Plan, trained: Trained, report: Report, command: str = "") -> None:
    """Leave the embedding where it is easily found, and say where; and where steps are left, that `command` goes on."""
    embedding, folder = trained.embedding, trained.folder
    assert folder is not None  # as in all processes but those that only help
    path = _written(embedding, trained.copy, plan.output, folder, report)
    if plan.plot and trained.losses:
        from .charts import loss_plot

        first_step = (embedding.step or 0) - len(trained.losses) + 1
        try:
            folder.save_plot(loss_plot(trained.losses, embedding.name, first_step, folder.fixed_losses()))
        except OSError as error:
            report.say(f"The plot of the losses could not be kept: {error}")
    best = (
        {"best_step": trained.best.step, "best": str(trained.best_copy)} if trained.best and trained.best_copy else {}
    )
    facts = {"embedding": str(path), "name": embedding.name, "step": embedding.step, "folder": str(folder.path)}
    judged = {} if trained.verdict is None else {"verdict": trained.verdict.facts()}
    left = {"go_on": command} if trained.left else {}
    report.facts(event="done", **facts, **best, **judged, **left)
    if trained.verdict is not None:
        report.say(trained.verdict.text)
    report.say(f"The record of the run: {folder.path}")
    if best:
        report.say(f"The fixed loss was lowest after step {best['best_step']}: {best['best']}")
    report.say(f"The embedding, embedding:{path.stem} in prompts: {path}")
    if trained.left:
        report.say(
            f"Finished early, at step {embedding.step}. To go on with the other {trained.left}, type:\n{command}"
        )


def _written(embedding: "Embedding", copy: Path | None, output: Path, folder: "RunFolder", report: Report) -> Path:
    """Write the embedding into `output`, over what an earlier part of the run has left there; returns where. Raises
    UserError where it is only kept as a copy elsewhere; it waits while it is nowhere, because then it is lost when this
    process ends."""
    from ..files import numbered
    from ..formats import save_embedding

    has_complained = False
    while True:
        try:
            output.mkdir(parents=True, exist_ok=True)
            path = _earlier(embedding, output, folder) or numbered(output / f"{embedding.name}.safetensors")
            if not _is_same(_loaded(path), embedding):
                save_embedding(embedding, path)
            with suppress(OSError):  # else it gets a number, if the run is gone on with
                folder.note(written=str(path.resolve()))
            return path
        except OSError as error:
            copy = copy or folder.rescue(embedding)
            if copy:
                raise UserError(
                    f"The trained embedding could not be written into {str(output)!r}: {error}. It is kept in {copy}."
                ) from error
            if not has_complained:
                has_complained = True
                report.say(
                    f"The trained embedding can be written nowhere: {error}. It is still in memory, and every "
                    f"{TRY_AGAIN} s it is tried again: make room on the disk. Ctrl-C gives it up."
                )
            time.sleep(TRY_AGAIN)


def _earlier(embedding: "Embedding", output: Path, folder: "RunFolder") -> Path | None:
    """The file in `output` that this run has been written to before; None where it holds something else by now."""
    path = Path(str(folder.settings().get("written", "")))
    there = _loaded(path) if path.parent == output.resolve() else None
    is_own = there is not None and there.step is not None and _is_same(there, folder.load(embedding.name, there.step))
    return path if is_own else None


def _loaded(path: Path) -> "Embedding | None":
    from ..formats import load_embedding

    try:
        return load_embedding(path)
    except (OSError, UserError):
        return None


def _is_same(one: "Embedding | None", other: "Embedding | None") -> bool:
    """Whether both are what was learnt by the same step."""
    import torch

    if one is None or other is None or (one.step, {*one.vectors}) != (other.step, {*other.vectors}):
        return False
    return all(torch.equal(rows, other.vectors[key]) for key, rows in one.vectors.items())
