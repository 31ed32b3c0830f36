import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
import torch

from textinv_core.devices import in_words
from textinv_core.errors import TrainingError, UserError
from textinv_core.files import write_atomically
from textinv_core.training import jobs as module
from textinv_core.training.jobs import Job, Outcome, is_done, run_jobs

ROOT = Path(__file__).parents[2]
SIX = [Job(f"cat-{n}", {"seed": n, "learning_rate": "0.005:100, 1e-3"}) for n in range(6)]


class Runner:
    """Does jobs by noting their names, except where `errors` has something to raise."""

    def __init__(self, **errors):
        self.ran, self.errors = [], errors

    def __call__(self, job, folder):
        self.ran.append(job.name)
        if job.name in self.errors:
            raise self.errors[job.name]
        (folder / "result").write_text(str(job.settings))


def states(outcomes):
    return {outcome.name: outcome.state for outcome in outcomes}


def jobs(*names, **settings):
    return [Job(name, settings) for name in names]


# One process


def test_jobs_run_in_turn_each_in_its_folder(tmp_path):
    runner = Runner()
    assert run_jobs(SIX, tmp_path / "new" / "jobs", runner) == [Outcome(job.name, "done") for job in SIX]
    assert runner.ran == [job.name for job in SIX]
    for job in SIX:
        folder = tmp_path / "new" / "jobs" / job.name
        assert (folder / "result").read_text() == str(job.settings)
        assert json.loads((folder / "job.json").read_text())["settings"] == job.settings


def test_what_is_done_with_the_same_settings_is_not_done_again(tmp_path):
    settings = {"template": ("[name]", "a [name]"), "batch_size": 2, "shuffle": {"mode": "all"}}
    run_jobs(jobs("cat", "dog", **settings), tmp_path, Runner())
    runner = Runner()
    assert states(run_jobs(jobs("cat", "dog", "fox", **settings), tmp_path, runner)) == {
        "cat": "there",
        "dog": "there",
        "fox": "done",
    }
    assert runner.ran == ["fox"]


def test_whether_a_job_is_done_can_be_asked(tmp_path):
    (cat, dog), (changed,) = jobs("cat", "dog", lines=("a", "b")), jobs("cat", lines=("a",))
    assert not is_done(cat, tmp_path / "cat")
    run_jobs([cat, dog], tmp_path, Runner(dog=UserError("No dogs.")))
    assert is_done(cat, tmp_path / "cat")
    assert not is_done(dog, tmp_path / "dog") and not is_done(changed, tmp_path / "cat")


def test_changed_settings_are_run_again(tmp_path):
    run_jobs(jobs("cat", "dog", seed=1), tmp_path, Runner())
    runner = Runner()
    outcomes = run_jobs([*jobs("cat", seed=2), *jobs("dog", seed=1)], tmp_path, runner)
    assert states(outcomes) == {"cat": "done", "dog": "there"} and runner.ran == ["cat"]
    # The first settings' files are no more.
    runner = Runner()
    assert states(run_jobs(jobs("cat", seed=1), tmp_path, runner)) == {"cat": "done"}


def test_settings_that_stopped_half_way_leave_nothing_that_counts_as_done(tmp_path):
    run_jobs(jobs("cat", seed=1), tmp_path, Runner())
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs("cat", seed=2), tmp_path, Runner(cat=KeyboardInterrupt()))
    runner = Runner()
    run_jobs(jobs("cat", seed=1), tmp_path, runner)
    assert runner.ran == ["cat"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, ValueError])
def test_a_re_run_goes_on_where_it_stopped(tmp_path, error):
    first, second = Runner(**{"cat-2": error()}), Runner()
    with pytest.raises(error):
        run_jobs(SIX, tmp_path, first)
    assert first.ran == ["cat-0", "cat-1", "cat-2"]
    run_jobs(SIX, tmp_path, second)
    assert second.ran == ["cat-2", "cat-3", "cat-4", "cat-5"]


@pytest.mark.parametrize(
    "error",
    [
        TrainingError("lost"),
        UserError("lost"),
        FileNotFoundError("lost"),
        torch.OutOfMemoryError("lost"),
        RuntimeError("CUDA error: out of memory"),
    ],
    ids=repr,
)
def test_a_job_that_fails_is_recorded_and_does_not_stop_the_others(tmp_path, error):
    runner = Runner(dog=error)
    outcomes = run_jobs(jobs("cat", "dog", "fox"), tmp_path, runner)
    assert outcomes == [Outcome("cat", "done"), Outcome("dog", "failed", in_words(error)), Outcome("fox", "done")]
    assert runner.ran == ["cat", "dog", "fox"]
    record = json.loads((tmp_path / "dog" / "job.json").read_text())
    assert (record["state"], record["message"]) == ("failed", in_words(error))
    # What was wrong may have been put right since.
    runner = Runner()
    assert states(run_jobs(jobs("cat", "dog", "fox"), tmp_path, runner)) == {
        "cat": "there",
        "dog": "done",
        "fox": "there",
    }
    assert runner.ran == ["dog"]


@pytest.mark.parametrize("record", ['{"settings": {}, "sta', "[]", '{"settings": {}}', "\0\xff"])
def test_a_record_that_says_nothing_is_no_record(tmp_path, record):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "job.json").write_text(record, "latin-1")
    assert states(run_jobs(jobs("cat", seed=1), tmp_path, Runner())) == {"cat": "done"}


def test_want_of_memory_is_told_in_our_words(tmp_path):
    [outcome] = run_jobs(jobs("cat"), tmp_path, Runner(cat=RuntimeError("CUDA error: out of memory")))
    assert "not enough memory" in outcome.message and "CUDA" not in outcome.message


def test_a_record_that_cannot_be_written_is_tried_again_and_stops_no_job(tmp_path, monkeypatch, caplog):
    tries = []

    def full_once(path, data):
        tries.append(path.parent.name)
        if tries == ["cat"]:
            raise OSError(28, "No space left on device")
        write_atomically(path, data)

    monkeypatch.setattr(module, "write_atomically", full_once)
    assert [outcome.state for outcome in run_jobs(jobs("cat", "dog"), tmp_path, Runner())] == ["done", "done"]
    assert [outcome.state for outcome in run_jobs(jobs("cat", "dog"), tmp_path, Runner())] == ["there", "there"]
    assert caplog.text.count("No space left") == 1


def test_a_job_that_cannot_even_be_claimed_does_not_stop_the_others(tmp_path):
    (tmp_path / "cat" / "job.lock").mkdir(parents=True)
    cat, dog = run_jobs(jobs("cat", "dog"), tmp_path, Runner())
    assert (cat.state, dog.state) == ("failed", "done") and "job.lock" in cat.message


def test_the_log_tells_what_is_run_and_what_failed(tmp_path, caplog):
    caplog.set_level("INFO", "textinv")
    run_jobs(jobs("cat"), tmp_path, Runner())
    run_jobs(jobs("cat", "owl"), tmp_path, Runner(owl=UserError("No owls.")))
    messages = ["textinv: job cat", "textinv: job owl", "textinv: job owl failed: No owls."]
    assert caplog.messages == messages


# Jobs that cannot be


def test_two_jobs_of_one_name_are_an_error(tmp_path):
    runner = Runner()
    with pytest.raises(UserError, match="Several jobs are called 'cat'"):
        run_jobs(jobs("Cat", "dog", "cat"), tmp_path, runner)
    assert not runner.ran and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "../cat", "a/b", "/cat", "nul", "a b"])
def test_names_that_are_no_folders_are_refused(name):
    with pytest.raises(UserError, match="cannot be called"):
        Job(name, {})


@pytest.mark.parametrize("value", [date(2026, 1, 2), Path("x"), {1}, torch.ones(1)], ids=lambda v: type(v).__name__)
def test_settings_that_json_does_not_know_are_refused(value):
    with pytest.raises(ValueError, match="settings of the job 'cat' can only be texts, numbers"):
        Job("cat", {"a": [{"b": value}]})


# Several processes. A list run from within another's job is as good as another process's: each opens its own lock.


def test_what_another_process_did_meanwhile_is_not_done_again(tmp_path):
    ran = []

    def run(job, folder):
        ran.append(job.name)
        if job.name == "cat":
            run_jobs(jobs("dog", "fox"), tmp_path, Runner(fox=UserError("No foxes.")))

    outcomes = run_jobs(jobs("cat", "dog", "fox"), tmp_path, run)
    assert outcomes == [Outcome("cat", "done"), Outcome("dog", "there"), Outcome("fox", "failed", "No foxes.")]
    assert ran == ["cat"]


def test_a_failure_is_tried_once_more_by_all_together(tmp_path):
    run_jobs(jobs("cat", "dog"), tmp_path, Runner(dog=UserError("first")))
    ran = []

    def run(job, folder):
        ran.append(job.name)
        if job.name == "fox":
            run_jobs(jobs("dog"), tmp_path, Runner(dog=UserError("second")))

    outcomes = run_jobs(jobs("fox", "dog"), tmp_path, run)
    assert outcomes == [Outcome("fox", "done"), Outcome("dog", "failed", "second")]
    assert ran == ["fox"]


def test_a_job_that_another_process_runs_comes_last_and_is_waited_for(tmp_path, monkeypatch):
    class Waiting(Exception):
        pass

    def sleep(seconds):
        raise Waiting

    monkeypatch.setattr(module.time, "sleep", sleep)
    second = Runner()

    def run(job, folder):
        with pytest.raises(Waiting):
            run_jobs(jobs("cat", "dog"), tmp_path, second)

    run_jobs(jobs("cat"), tmp_path, run)
    assert second.ran == ["dog"]


WORKER = """
import json, os, sys, time
from pathlib import Path
from textinv_core.training import jobs
from textinv_core.training.jobs import Job, run_jobs

folder, name, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
jobs.POLL = 0.05

def run(job, place):
    with open(place / "ran", "a") as file:
        file.write(name + "\\n")
    (folder / f"{name}.busy").touch()
    if what == "hang":
        time.sleep(300)
    while what == "together" and len(list(folder.glob("*.busy"))) < 2:
        time.sleep(0.01)
    time.sleep(0.02)

outcomes = run_jobs([Job(f"cat-{n}", {"seed": n}) for n in range(6)], folder, run)
print(json.dumps({outcome.name: outcome.state for outcome in outcomes}))
"""


def start(folder, name, what):
    command = [sys.executable, "-c", WORKER, str(folder), name, what]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def ran(folder):
    """By whom each job was run."""
    return {path.parent.name: path.read_text().split() for path in folder.glob("*/ran")}


def wait_until(true):
    """Wait for something that takes a second or so."""
    deadline = time.monotonic() + 100
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_share_jobs_and_run_each_once(tmp_path):
    processes = [start(tmp_path, name, "together") for name in ("a", "b")]
    outcomes_of = {name: json.loads(p.communicate(timeout=100)[0]) for name, p in zip("ab", processes, strict=True)}
    by = ran(tmp_path)
    assert len(by) == 6 and all(len(names) == 1 for names in by.values())
    assert {name for [name] in by.values()} == {"a", "b"}
    for name, outcomes in outcomes_of.items():
        assert outcomes == {job: "done" if by[job] == [name] else "there" for job in by}


def test_the_job_of_a_killed_process_is_taken_up(tmp_path):
    first = start(tmp_path, "first", "hang")
    wait_until((tmp_path / "first.busy").exists)
    second = start(tmp_path, "second", "")
    wait_until(lambda: len(list(tmp_path.glob("*/job.json"))) == 5)
    assert second.poll() is None and ran(tmp_path)["cat-0"] == ["first"]
    first.kill()
    outcomes = json.loads(second.communicate(timeout=100)[0])
    first.communicate()
    assert outcomes == {f"cat-{n}": "done" for n in range(6)}
    assert ran(tmp_path) == {f"cat-{n}": ["first", "second"] if n == 0 else ["second"] for n in range(6)}
