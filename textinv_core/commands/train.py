"""`textinv train`: from pictures to an embedding, or a list of such jobs."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..errors import UserError
from .flags import Flags
from .job_list import train_jobs
from .one_training import checked_pictures, train_one
from .output import USAGE, AsJson, Report, complain, failing, logging_to_stderr
from .plan import Plan, check_paths
from .process import status_of
from .settings_file import called, plans, read_file
from .trained import finish

if TYPE_CHECKING:
    from ..training.parallel import Processes


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
    with the steps that are left. Once more, half a second later or more, it stops at once, as SIGTERM and SIGHUP do,
    with which systems end what they run; what was learnt is kept then too. A list of jobs ends with the one that Ctrl-C
    has finished.

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
            train_jobs(todo, report, naming)
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
                    finish(plan, trained, report, command)
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
