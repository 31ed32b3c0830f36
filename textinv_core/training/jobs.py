"""Many trainings as a list that any number of processes, started at any time, work off together."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ..devices import in_words, is_out_of_memory
from ..embedding import check_name
from ..errors import UserError
from ..files import claimed, write_atomically

log = logging.getLogger("textinv")

POLL = 1.0  # seconds between looks at jobs that other processes run


@dataclass(frozen=True)
class Job:
    """One training of a list.

    name: its folder's, and of the kind an embedding can have; see `embedding.check_name`.
    settings: everything that decides its result, of the kinds JSON knows.

    Raises UserError for another name, ValueError for another kind.
    """

    name: str
    settings: Mapping[str, Any]

    def __post_init__(self):
        check_name(self.name)
        try:
            json.dumps(dict(self.settings))
        except TypeError as error:
            raise ValueError(
                f"The settings of the job {self.name!r} can only be texts, numbers, true or false, and lists and "
                f"tables of these: {error}."
            ) from None


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    state: `done`, by this process; `there`, done earlier or by another process; `failed`, with the reason in `message`.
    """

    name: str
    state: Literal["done", "there", "failed"]
    message: str = ""


def _read(record: Path) -> dict[str, Any]:
    """A job's `job.json`; nothing where there is none, or none that can be read."""
    try:
        facts = json.loads(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def is_done(job: Job, folder: Path) -> bool:
    """Whether the record in `folder` says that a job has been done, with these settings."""
    record = _read(folder / "job.json")
    return record.get("state") == "done" and record.get("settings") == _as_read(job)


def _as_read(job: Job) -> dict[str, Any]:
    """A job's settings as a record has them: tuples are lists."""
    return json.loads(json.dumps(dict(job.settings)))


def _settle(
    job: Job,
    folder: Path,
    before: dict[str, Any],
    run: Callable[[Job, Path], None],
    unwritten: dict[Path, bytes],
) -> Outcome:
    """Run a job that is this process's, unless its record says that this was done.

    before: its record when this process set out. A failure in it is tried once more; one that came since is another
    process's, which has just tried. unwritten: takes the record of how it ended, by its path.
    """
    path = folder / "job.json"
    record = _read(path)
    settings = _as_read(job)
    if is_done(job, folder):
        return Outcome(job.name, "there")
    if record.get("settings") == settings and record != before:
        return Outcome(job.name, "failed", str(record.get("message")))
    # What it says is no longer so once there are new files.
    path.unlink(missing_ok=True)
    log.info(f"textinv: job {job.name}")
    outcome = Outcome(job.name, "done")
    try:
        run(job, folder)
    except Exception as error:
        # What is wrong with one job and need not be with the next.
        if not (isinstance(error, UserError | OSError) or is_out_of_memory(error)):
            raise
        log.warning(f"textinv: job {job.name} failed: {in_words(error)}")
        outcome = Outcome(job.name, "failed", in_words(error))
    record = {"settings": settings, "state": outcome.state, "message": outcome.message, "ended": str(datetime.now())}
    unwritten[path] = json.dumps(record, indent=2).encode()
    return outcome


def _write(records: dict[Path, bytes]) -> None:
    """Write what can be written of jobs' records, and take it out of `records`."""
    for path in [*records]:
        try:
            write_atomically(path, records[path])
        except OSError as error:
            log.warning(
                f"textinv: it cannot be noted that the job {path.parent.name} has ended: {error}. It is tried again "
                "after the next job; without that note it is trained again when the list is."
            )
        else:
            del records[path]


def run_jobs(jobs: Sequence[Job], folder: Path, run: Callable[[Job, Path], None]) -> list[Outcome]:
    """Run those of `jobs` that are still to be done, each in a folder of its own, `<folder>/<name>/`.

    Any number of processes can be given the same list and folder, under `torchrun` or not: each takes the next job
    that nobody is at, and waits at the end for those of others, to take up what a killed process leaves. Started
    again, they go on where they stopped: jobs are skipped that are done with the same settings, which each folder's
    `job.json` says, and run where they failed, were stopped, or have other settings now.

    run: does a job, in its folder; may find there what an earlier try has left. A UserError, OSError or want
    of memory in it is recorded, and the next job is run; anything else ends this process's part.

    Returns how each job ended, in the order of `jobs`. Raises UserError when two have one name.
    """
    # Some file systems do not tell `Cat` from `cat`.
    again = [name for name, times in Counter(job.name.lower() for job in jobs).items() if times > 1]
    if again:
        raise UserError(f"Several jobs are called {again[0]!r}. Give each a name of its own; it is its folder's too.")
    for job in jobs:
        (folder / job.name).mkdir(parents=True, exist_ok=True)
    before = {job.name: _read(folder / job.name / "job.json") for job in jobs}
    outcomes: dict[str, Outcome] = {}
    unwritten: dict[Path, bytes] = {}
    while left := [job for job in jobs if job.name not in outcomes]:
        for job in left:
            try:
                with claimed(folder / job.name / "job.lock") as mine:
                    if mine:
                        outcomes[job.name] = _settle(job, folder / job.name, before[job.name], run, unwritten)
                        _write(unwritten)
            except OSError as error:  # the lock needs room on the disk too
                outcomes[job.name] = Outcome(job.name, "failed", str(error))
        if not any(job.name in outcomes for job in left):
            time.sleep(POLL)
    return [outcomes[job.name] for job in jobs]
