"""A list of trainings, worked off together with other processes."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Naming, SettingError, UserError
from .embeddings import check_embeddings
from .one_training import checked_pictures, runs_of, train_one
from .output import FAILED, USAGE, Report, complain, failing, sentence
from .plan import Plan, check_paths, facts_of
from .process import status_of
from .settings_file import of_job
from .trained import Trained, finish

if TYPE_CHECKING:
    from ..training.jobs import Job


class _FinishedEarly(Exception):
    """A job is not done, and its list is to end."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.trained = trained


def train_jobs(todo: list[Plan], report: Report, naming: Naming) -> None:
    """Work a list off together with other processes. Each tells of its own jobs, and how all ended unless quiet."""
    from ..training.jobs import Job, is_done, run_jobs
    from ..training.parallel import heed_launcher, take_gpu

    by_name = {plan.name: plan for plan in todo}
    jobs = [Job(plan.name, facts_of(plan)) for plan in todo]

    root = runs_of(todo[0])
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
            finish(plan, trained, own)
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
