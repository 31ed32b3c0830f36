"""One training as a command: checked before its model is loaded, with its progress shown, finished by Ctrl-C."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from .embeddings import check_embeddings, load_embeddings
from .inputs import load_model, load_pictures, own_size, starting_embedding
from .output import Report, complain
from .plan import Plan
from .process import heeding_the_first, status_of
from .trained import Trained

if TYPE_CHECKING:
    from ..picture import Picture
    from ..training.folder import RunFolder
    from ..training.parallel import Processes


def checked_pictures(plan: Plan, report: Report, processes: "Processes | None" = None) -> "Sequence[Picture]":
    """The pictures of a training, when all is checked that can be known before its model is loaded; says in what size
    they are where that is the model's own.

    Raises UserError for what keeps it from starting, and OSError.
    """
    import torch

    from ..devices import device_called
    from ..training.examples import Example
    from ..training.learnable import LearnableEmbedding
    from ..training.parallel import ALONE
    from ..training.training import check

    device_called(plan.device)
    start = check_embeddings(plan)
    images = own_size(plan.images, plan.model, plan.model_config)
    if images != plan.images:
        size = f"{images.width}x{images.height} pixels"
        report.say(f"The pictures are brought to {size}. Where no size was set, it is the one the model was made for.")
    pictures = load_pictures(images)
    examples = [Example(torch.empty(0), picture.caption) for picture in pictures]
    check(LearnableEmbedding(start), examples, plan.train, processes or ALONE)
    return pictures


def runs_of(plan: Plan) -> Path:
    """Where the folders of a plan's runs are, in one of its name."""
    return plan.output / "textual_inversion"


def train_one(
    plan: Plan,
    pictures: "Sequence[Picture]",
    report: Report,
    processes: "Processes | None" = None,
    command: str = "",
) -> Trained:
    """Train on `pictures` as `plan` says, showing progress, in a new run folder below its output.

    The first Ctrl-C finishes it after the step in progress. command: what goes on with this training, for the next
    Ctrl-C to say; "" leaves that to the caller. Raises UserError and OSError.
    """
    from ..training.learn import Started, learn
    from ..training.parallel import ALONE
    from ..training.run import Ended
    from ..training.training import Step
    from .progress import showing

    processes = processes or ALONE
    report.say(f"Loading {plan.model}")
    host = load_model(plan.model, plan.model_config, plan.device, plan.precision)
    host = host.knowing(load_embeddings(plan.embedding))
    embedding = starting_embedding(plan, host)
    more = {"shuffle": plan.shuffle, "preview": plan.preview, "processes": processes}
    events = learn(host, pictures, embedding, plan.train, runs_of(plan), **more)
    started = ended = step = None
    is_asked = was_asked = False  # to finish: by now, by the last step

    def finish() -> bool:
        nonlocal is_asked
        if started is None:
            return False
        is_asked = True
        started.finish()
        return True

    said = "" if processes.rank else "\nFinishing after this step. Ctrl-C once more stops at once.\n"
    try:
        with (
            heeding_the_first(finish, said),
            closing(events),
            showing(report, embedding.name, plan.train.steps) as show,
        ):
            for event in events:
                show(event)
                match event:
                    case Started():
                        started = event
                    case Step():
                        step, was_asked = event, is_asked
                    case Ended():
                        ended = event
    except KeyboardInterrupt as stopped:
        if not command or processes.rank or started is None or started.folder is None:
            raise
        reached = None if step is None else step.step
        raise _stopped(report, command, started.folder, embedding.name, reached, status_of(stopped)) from None
    assert started is not None and ended is not None  # the first event and the last one
    left = 0
    if was_asked and step is not None and (left := step.last_step - step.step):
        report.facts(event="finish", name=embedding.name, step=step.step, left=left)
    result = ended.learnt, ended.losses, started.folder, ended.path, ended.best, ended.best_path
    return Trained(*result, ended.verdict, left)


def _stopped(
    report: Report, command: str, folder: "RunFolder", name: str, reached: int | None, status: int
) -> SystemExit:
    """Say what is kept after an interrupt, and how to go on.

    command: what does. reached: the last step that was done, if any was. status: to end with.
    """
    from ..formats import load_embedding

    kept = folder.newest()
    if not kept:
        lost = f"What was learnt by step {reached} could not be kept."
        none = "Stopped before the first step; nothing was learnt yet."
        return complain(report, f"Stopped. {lost}" if reached else none, status)
    step = load_embedding(kept).step
    is_behind = step is not None and reached is not None and step < reached
    lost = f" What was learnt from step {step} to {reached} could not be kept." if is_behind else ""
    report.facts(event="saved", name=name, path=str(kept), step=step)
    said = f"Stopped.{lost} The embedding of step {step} is kept in {kept}. To go on, type:\n{command}"
    return complain(report, said, status, go_on=command)
