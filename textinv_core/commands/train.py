"""`textinv train`: from pictures to an embedding, or a list of such jobs."""

import gc
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import given, with_flags
from .output import FAILED, INTERRUPTED, USAGE, Report, complain, failing, logging_to_stderr
from .plan import PANELS, Pictures, Plan, check_paths, facts_of, plans, read_file

if TYPE_CHECKING:
    from torch import Tensor

    from ..embedding import Embedding
    from ..training.jobs import Job
    from ..training.loop import Progress
    from ..training.parallel import Processes
    from ..training.run import Trained

RECENT = 20  # losses in the mean that is shown: single ones say more of their noise level than of progress


@with_flags(PANELS)
def train(
    context: typer.Context,
    settings: Annotated[
        Path | None, typer.Argument(help="A settings file (TOML). Flags win over it.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say on stdout what happens, one JSON object a line.")
    ] = False,
    **flags: Any,
) -> None:
    """Teach an embedding what your pictures show.

    A first training, which leaves my-cat.safetensors in the folder output:

        textinv train --model sd15.safetensors --images cat_pictures --name my-cat --init-text cat

    A style, from its preset, at a rate that falls:

        textinv train --model sd15.safetensors --images ink --name my-ink --init-text drawing --preset style \\
            --steps 2000 --learning-rate "0.005:500, 1e-3:2000"

    The same from a settings file, ink.toml, which has the names of the flags with _ in place of -:

        model = "sd15.safetensors"
        name = "my-ink"
        init_text = "drawing"
        preset = "style"

        [images]
        folder = "ink"

        [train]
        steps = 2000
        learning_rate = "0.005:500, 1e-3:2000"

        [shuffle]
        mode = "dynamic"

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
    paths are compared. To train it again, delete its `job.json`, in `textual_inversion/NAME` of the output folder.

    Ctrl-C keeps what was learnt and says how to go on. One training on several GPUs or processes, which share the
    pictures of each step: `torchrun --nproc-per-node 2 -m textinv_core train ink.toml`

    Ends with 0 when done, 1 when it failed, 2 for settings it cannot use, 130 when interrupted.
    """
    report = Report(as_json, quiet=os.environ.get("RANK", "0") != "0")
    with failing(report, USAGE):
        told = read_file(settings) if settings else {}
        todo, are_jobs = plans(told, given(PANELS, flags))
        if not are_jobs:
            check_paths(todo[0])
    with failing(report), logging_to_stderr():
        if are_jobs:
            _train_jobs(todo, report)
        else:
            from ..training.parallel import join

            processes = join()
            with failing(report, USAGE):
                plan = _shared(todo[0], processes, report)
            trained = train_one(plan, report, processes, _command(context, processes))
            if processes.rank == 0:
                _finish(plan, trained, report)


def _shared(plan: Plan, processes: "Processes", report: Report) -> Plan:
    """`plan` with batches that `processes` can share, saying so where they are others. Raises as `parallel.shared`."""
    from ..training.parallel import shared

    settings = shared(plan.train, processes.count)
    if settings != plan.train:
        told = f"{settings.gradient_accumulation} batches of {settings.batch_size}"
        report.say(f"For {processes.count} processes, the pictures of a step are now {told}.")
    return replace(plan, train=settings)


def _command(context: typer.Context, processes: "Processes") -> str:
    """What was typed to start this."""
    program = context.find_root().info_name or "textinv"
    if processes.count > 1:
        program = f"torchrun --nproc-per-node {processes.count} -m textinv_core"
    return f"{program} {shlex.join(sys.argv[1:])}"


def _finish(plan: Plan, trained: "Trained", report: Report) -> None:
    """Leave the embedding where it is easily found, and say where."""
    from ..files import numbered
    from ..formats import save_embedding

    plan.output.mkdir(parents=True, exist_ok=True)
    path = numbered(plan.output / f"{trained.embedding.name}.safetensors")
    save_embedding(trained.embedding, path)
    if plan.plot:
        from ..images import save_picture
        from .pictures import loss_plot

        first_step = (trained.embedding.step or 0) - len(trained.losses) + 1
        save_picture(loss_plot(trained.losses, trained.embedding.name, first_step), trained.folder / "loss.png")
    report.facts(
        event="done",
        embedding=str(path),
        name=trained.embedding.name,
        step=trained.embedding.step,
        folder=str(trained.folder),
    )
    report.say(f"The record of the run: {trained.folder}")
    report.say(f"The embedding, embedding:{path.stem} in prompts: {path}")


def _train_jobs(todo: list[Plan], report: Report) -> None:
    """Work a list off together with other processes. Each tells of its own jobs, and how all ended unless quiet."""
    from ..training.jobs import Job, run_jobs
    from ..training.parallel import heed_launcher, take_gpu

    roots = {plan.output for plan in todo}
    if len(roots) > 1:
        raise ValueError(f"All jobs share one output folder; these have {', '.join(map(str, sorted(roots)))}.")
    unnamed = [number for number, plan in enumerate(todo, 1) if not plan.name]
    if unnamed:
        raise ValueError(f"Job {unnamed[0]} has no name; each needs one of its own.")
    by_name = {plan.name: plan for plan in todo}
    jobs = [Job(plan.name, facts_of(plan)) for plan in todo]

    own = Report(report.as_json)

    def run(job: "Job", folder: Path) -> None:
        plan = by_name[job.name]
        check_paths(plan)
        _finish(plan, train_one(plan, own), own)

    heed_launcher()
    take_gpu()
    try:
        outcomes = run_jobs(jobs, _root(todo[0]), run)
    except KeyboardInterrupt:
        again = "Stopped. The same command goes on with the jobs that are not done, each from its beginning."
        raise complain(report, again, INTERRUPTED) from None
    for outcome in outcomes:
        report.facts(event="job", name=outcome.name, state=outcome.state, message=outcome.message)
        report.say(f"{outcome.name}: {outcome.state}{'. ' if outcome.message else ''}{outcome.message}")
    if failed := [outcome.name for outcome in outcomes if outcome.state == "failed"]:
        if report.quiet:
            raise typer.Exit(FAILED)
        raise complain(report, f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}.", FAILED)


def _root(plan: Plan) -> Path:
    return plan.output / "textual_inversion"


def train_one(plan: Plan, report: Report, processes: "Processes | None" = None, command: str = "") -> "Trained":
    """Train as `plan` says, showing progress, in a new run folder below its output.

    command: what starts this training, so that an interrupt can say what goes on with it; "" leaves interrupts to the
    caller. Raises ValueError, OSError and TrainingError.
    """
    from ..dataset import encoded_examples
    from ..embedding import with_model
    from ..formats import load_embedding
    from ..hosts import diffusers as host
    from ..training.parallel import ALONE
    from ..training.run import new_run_folder, run_training

    processes = processes or ALONE
    images, captions, masks = load_pictures(plan.images)  # before the model, which takes longer to fail
    report.say(f"Loading {plan.model}")
    pipe = load_model(plan.model, plan.model_config, plan.device, plan.precision)
    embedding = starting_embedding(plan, pipe)
    others = [load_embedding(path) for path in plan.embedding]
    examples = encoded_examples(images, captions, masks, host.latent_multiple(pipe), partial(host.encode_images, pipe))
    height, width = (side * host.latent_multiple(pipe) for side in examples[0].latent.shape[-2:])
    facts = {"textinv.sd_checkpoint_name": plan.model.stem, "modelspec.resolution": f"{width}x{height}"}
    embedding = with_model(embedding, facts)
    folder = new_run_folder(_root(plan), embedding.name) if processes.rank == 0 else _root(plan)
    report.facts(
        event="start",
        name=embedding.name,
        folder=str(folder),
        pictures=len(examples),
        vectors={key: len(rows) for key, rows in embedding.vectors.items()},
        step=embedding.step or 0,
        steps=plan.train.steps,
    )
    try:
        with host.trainable(pipe, others) as model, showing(report, plan, embedding, folder) as on_step:
            return run_training(model, examples, embedding, plan.train, folder, plan.shuffle, on_step, processes)
    except KeyboardInterrupt:
        if not command or processes.rank:
            raise
        raise _stopped(report, command, folder, embedding.name) from None


def _stopped(report: Report, command: str, folder: Path, name: str) -> typer.Exit:
    """Say how to go on after an interrupt: with the newest of the embeddings that are kept, and the same settings."""
    kept = sorted(folder.glob("embeddings/*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    if not kept:
        return complain(report, "Stopped before the first step; nothing was learnt yet.", INTERRUPTED)
    go_on = f"{command} --from {shlex.quote(str(kept[-1]))}"  # of two --from, the last counts
    report.facts(event="saved", name=name, path=str(kept[-1]))
    return complain(report, f"Stopped. To go on, type:\n{go_on}", INTERRUPTED, go_on=go_on)


_loaded: dict[tuple[Any, ...], Any] = {}  # what `load_model` was told last -> the pipeline


def load_model(model: Path, config: Path | None, device: str, precision: str) -> Any:
    """A pipeline, loaded once for all jobs in a row that use it; another one's memory is given back before.

    Raises what `hosts.pipelines.load` does, and ValueError for a device there is not.
    """
    told = (model, config, device, precision)
    if told not in _loaded:
        _loaded.clear()
        gc.collect()  # modules and their methods can refer to one another
        _loaded[told] = _load_model(*told)
    return _loaded[told]


def _load_model(model: Path, config: Path | None, device: str, precision: str) -> Any:
    import torch

    from ..hosts import diffusers as host

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if precision == "auto":
        half = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        precision = "bf16" if half else "fp32"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"There is no device {device!r} here: {str(error).splitlines()[0]}") from None
    return host.load(model, config, device, dtype)


def starting_embedding(plan: Plan, pipe: Any) -> "Embedding":
    """What is trained: a new embedding, or the one in the file that `plan.from_` names, under the plan's name if it has
    one. Raises ValueError where it does not fit the model."""
    from ..embedding import check_name, create_embedding
    from ..formats import load_embedding
    from ..hosts import diffusers as host

    if not plan.from_:
        rows = host.text_vectors(pipe, plan.init_text)
        return create_embedding(plan.name, rows, plan.vectors, host.keeps_first_tokens(pipe))
    embedding = load_embedding(plan.from_)
    # Runs keep theirs as <name>-<step>.
    name = plan.name or embedding.name.removesuffix(f"-{embedding.step}")
    embedding = replace(embedding, name=check_name(name))
    host.check_fits(pipe, embedding)
    return embedding


def load_pictures(pictures: Pictures) -> "tuple[list[Tensor], list[str], list[Tensor]]":
    """Pictures, captions and masks, ready for training."""
    from ..images import load_folder, preprocess

    folder = pictures.folder.resolve()
    loaded = load_folder(
        folder.parent,
        folder.name,
        pictures.recursive,
        pictures.captions,
        pictures.filename_word_regex or None,
        pictures.filename_join_string,
    )
    masks = loaded.masks if pictures.mask_loss else None
    return preprocess(
        loaded.images, loaded.captions, masks, pictures.width, pictures.height, pictures.resize, pictures.flip
    )


@contextmanager
def showing(report: Report, plan: Plan, embedding: "Embedding", folder: Path) -> "Iterator[Callable[[Progress], None]]":
    """A progress bar with loss, rate and time left, and JSON for each step, for what is called after each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    recent: list[float] = []
    started = time.monotonic()
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True, quiet=report.quiet)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(embedding.name, total=plan.train.steps, completed=embedding.step or 0, state="")

        def on_step(progress: "Progress") -> None:
            recent[:] = [*recent[1 - RECENT :], progress.loss]
            state = f"loss {sum(recent) / len(recent):.4f}  rate {progress.learning_rate:g}"
            bar.update(task, completed=progress.step, total=progress.last_step, state=state)
            report.facts(
                event="step",
                name=embedding.name,
                step=progress.step,
                last_step=progress.last_step,
                loss=progress.loss,
                learning_rate=progress.learning_rate,
                seconds=round(time.monotonic() - started, 3),
            )
            if plan.train.save_every and progress.step % plan.train.save_every == 0:
                path = folder / "embeddings" / f"{embedding.name}-{progress.step}.safetensors"
                report.facts(event="saved", name=embedding.name, path=str(path), step=progress.step)

        yield on_step
