"""`textinv train`: from pictures to an embedding, or a list of such jobs."""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import Naming, SettingError, UserError
from .embeddings import check_embeddings, load_embeddings
from .flags import Flags
from .inputs import load_model, load_pictures, own_size, starting_embedding
from .output import FAILED, USAGE, AsJson, Report, complain, failing, logging_to_stderr, sentence
from .plan import Plan, check_paths, facts_of
from .process import heeding_the_first, status_of
from .settings_file import called, of_job, plans, read_file

if TYPE_CHECKING:
    from ..embedding import Embedding
    from ..picture import Picture
    from ..training.folder import RunFolder
    from ..training.jobs import Job
    from ..training.parallel import Processes
    from ..training.verdict import Verdict

TRY_AGAIN = 5  # seconds between tries to write what can be written nowhere


def train(
    settings: Annotated[Path | None, Parameter(help="A settings file (TOML). Flags win over it.")] = None,
    /,
    *,
    flags: Flags | None = None,
    as_json: AsJson = False,
) -> None:
    """Teach an embedding what your pictures show.

    A first training, which leaves tom.safetensors in the folder output:

        textinv train --model sd15.safetensors --images cat --name tom --init-text cat

    A style, from its preset:

        textinv train --model sd15.safetensors --images ink --name inky --preset style

    The same from a settings file, ink.toml, which has the names of the flags with _ in place of -, and at a rate that
    falls:

        model = "sd15.safetensors"
        name = "inky"
        init_text = "drawing"
        preset = "style"

        [images]
        folder = "ink"

        [train]
        steps = 2000
        learning_rate = "0.005:500, 1e-3:2000"

        [shuffle]
        mode = "dynamic"

        [preview]
        every = 250
        prompt = "a boat, a work in [name] style"

    and `textinv train ink.toml`, perhaps with flags for what should differ. A list of jobs has a table each,
    with what it has of its own; any number of processes started with the same file share them, and started again go on
    with those that are not done:

        [[job]]
        name = "my-dog"
        images = "dog_pictures"

        [[job]]
        name = "my-cat"
        images = "cat_pictures"
        train.steps = 3000

    A job counts as done by its settings alone: that pictures or model files have changed since is not seen, only their
    paths are compared. To train it again, delete its `job.json`, in `textual_inversion/NAME` of the output folder; with
    --resume fresh, if nothing has changed.

    All jobs are checked before the first is trained.

    The same pictures, model, embedding and settings are the same run: asked for again, it goes on where it was stopped,
    to the bit on a CPU, and has nothing to do where it has ended. --resume fresh begins anew.

    Ctrl-C finishes after the step in progress: the embedding is written as at the end, and the same command goes on
    with the steps that are left. Once more, it stops at once, as SIGTERM and SIGHUP do, with which systems end what
    they run; what was learnt is kept then too. A list of jobs ends with the one that Ctrl-C has finished.

    One training on several GPUs or processes, which share the pictures of each step:

        torchrun --nproc-per-node 2 -m textinv_core train ink.toml

    Ends with 0 when done or finished, 1 when it failed, 2 for settings it cannot use, 130 when interrupted, 143 after
    SIGTERM, 129 after SIGHUP. (torchrun ends with 1 for all of these but 0, after a report of its own.)
    """
    report = Report(as_json, quiet=os.environ.get("RANK", "0") != "0")
    with failing(report, USAGE):
        tables = _tables(settings)
    naming = partial(called, tables=tables, flags=flags or {})
    with failing(report, USAGE, naming):
        todo, are_jobs = plans(tables, flags or {})
        if not are_jobs:
            check_paths(todo[0])
    with failing(report, naming=naming), logging_to_stderr():
        if are_jobs:
            _train_jobs(todo, report, naming)
        else:
            from ..training.parallel import join

            processes = join()
            with failing(report, USAGE, naming):
                plan = _shared(todo[0], processes, report)
                pictures = checked_pictures(plan, report, processes)
            command = _command(processes) + (
                " --resume auto" if plan.train.resume == "fresh" else ""
            )  # the last counts
            trained = train_one(plan, pictures, report, processes, command)
            if processes.rank == 0:
                try:
                    _finish(plan, trained, report, command)
                except KeyboardInterrupt as stopped:
                    kept = f" The trained embedding is kept in {trained.copy}." if trained.copy else ""
                    raise complain(report, f"Stopped.{kept}", status_of(stopped)) from None


def _tables(settings: Path | None) -> Mapping[str, Any]:
    """What the settings file says, where there is one. Raises as `read_file`, and UserError for what is no file."""
    if settings is None:
        return {}
    if not settings.exists():
        raise UserError(f"There is no settings file {str(settings)!r}.")
    if settings.is_dir():
        raise UserError(f"{str(settings)!r} is a folder, not a settings file. Pictures are given with --images.")
    return read_file(settings)


def _shared(plan: Plan, processes: "Processes", report: Report) -> Plan:
    """`plan` with batches that `processes` can share, saying so where they are others. Raises as `parallel.shared`."""
    from ..training.parallel import shared

    settings = shared(plan.train, processes.count)
    if settings != plan.train:
        batches = f"{settings.gradient_accumulation} batches of {settings.batch_size}"
        report.say(f"For {processes.count} processes, the pictures of a step are now {batches}.")
    return replace(plan, train=settings)


def _command(processes: "Processes") -> str:
    """What was typed to start this."""
    program = "python -m textinv_core" if Path(sys.argv[0]).name == "__main__.py" else "textinv"
    if processes.count > 1:
        program = f"torchrun --nproc-per-node {processes.count} -m textinv_core"
    return f"{program} {shlex.join(sys.argv[1:])}"


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


def _finish(plan: Plan, trained: Trained, report: Report, command: str = "") -> None:
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


class _FinishedEarly(Exception):
    """A job is not done, and its list is to end."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.trained = trained


def _train_jobs(todo: list[Plan], report: Report, naming: Naming) -> None:
    """Work a list off together with other processes. Each tells of its own jobs, and how all ended unless quiet."""
    from ..training.jobs import Job, is_done, run_jobs
    from ..training.parallel import heed_launcher, take_gpu

    by_name = {plan.name: plan for plan in todo}
    jobs = [Job(plan.name, facts_of(plan)) for plan in todo]

    root = _root(todo[0])
    with failing(report, USAGE, naming):
        _check_jobs([by_name[job.name] for job in jobs if not is_done(job, root / job.name)])

    own = Report(report.as_json)

    def run(job: "Job", folder: Path) -> None:
        plan = by_name[job.name]
        try:
            check_paths(plan)
            trained = train_one(plan, checked_pictures(plan, own), own)
            if trained.left:
                raise _FinishedEarly(trained)
            _finish(plan, trained, own)
        except (UserError, OSError) as error:  # for the job's record, which has no other names for settings
            raise UserError(sentence(error, naming)) from error

    heed_launcher()
    take_gpu()
    try:
        outcomes = run_jobs(jobs, root, run)
    except _FinishedEarly as early:
        embedding = early.trained.embedding
        own.say(
            f"{embedding.name}: finished early, at step {embedding.step}. It is kept in {early.trained.copy}. The same "
            f"command goes on with its other {early.trained.left} steps, and with the jobs that are not done."
        )
        return
    except KeyboardInterrupt as stopped:
        again = "Stopped. The same command goes on with the jobs that are not done, this one from where it stands."
        raise complain(report, again, status_of(stopped)) from None
    for outcome in outcomes:
        report.facts(event="job", name=outcome.name, state=outcome.state, message=outcome.message)
        state = "done before" if outcome.state == "there" else outcome.state
        report.say(f"{outcome.name}: {state}{'. ' if outcome.message else ''}{outcome.message}")
    if failed := [outcome.name for outcome in outcomes if outcome.state == "failed"]:
        if report.quiet:
            raise SystemExit(FAILED)
        raise complain(report, f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}.", FAILED)


def _check_jobs(todo: list[Plan]) -> None:
    """Raise UserError, with a line for each job that could not start. One that waits for what another one of them may
    leave in the output folder is looked at when its turn comes."""
    wrong = []
    for plan in todo:
        output = plan.output.resolve()
        files = [file.resolve() for file in (plan.from_, *plan.embedding) if file]
        if any(not file.exists() and file.is_relative_to(output) for file in files):
            continue
        try:
            check_paths(plan)
            check_embeddings(plan)
        except UserError as error:
            wrong.append(of_job(f"{plan.name!r}", error))
    if wrong:
        raise SettingError(lambda name: "\n".join(error.sentence(name) for error in wrong))


def _root(plan: Plan) -> Path:
    return plan.output / "textual_inversion"


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
    events = learn(host, pictures, embedding, plan.train, _root(plan), **more)
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
