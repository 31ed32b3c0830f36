"""The same inputs are the same run: what has ended gives its result, what has not goes on."""

import errno
import json
import logging
import shutil

import pytest
import torch

from tests.fakes import FakeHost, FakeModel, Interrupted, fake_embedding, fake_pictures, same
from textinv_core.errors import UserError
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.folder import RunFolder
from textinv_core.training.learn import Preview, Started, learn
from textinv_core.training.run import Ended
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Step, Training


def settings(steps=6, **more):
    return TrainSettings(("[name], [filewords]",), **{"steps": steps, "save_every": 0, **more})


def train(root, told, host=None, stop_after=0, **more):
    """What happens in a training that is stopped, if at all, after so many steps."""
    events = []
    learning = learn(host or FakeHost(), fake_pictures(), fake_embedding(), told, root, **more)
    for event in learning:
        events.append(event)
        if isinstance(event, Step) and event.step == stop_after:
            with pytest.raises(Interrupted):
                learning.throw(Interrupted())
            return events
    return events


def steps(events):
    return [event.step for event in events if isinstance(event, Step)]


def folders(root):
    return sorted(path for path in (root / "cat").iterdir())


@pytest.fixture
def unbroken(tmp_path):
    return train(tmp_path / "unbroken", settings(20))[-1]


def csv(root):
    [folder] = folders(root)
    return (folder / "textual_inversion_loss.csv").read_bytes()


def test_a_stopped_run_goes_on_to_the_bit(tmp_path, unbroken, caplog):
    caplog.set_level(logging.INFO, "textinv")
    root = tmp_path / "broken"
    train(root, settings(20), stop_after=7)
    assert steps(train(root, settings(20), stop_after=12)) == [8, 9, 10, 11, 12]
    assert "goes on from step 7" in caplog.text
    *_, ended = train(root, settings(20))
    assert isinstance(ended, Ended) and same(ended.learnt, unbroken.learnt)
    assert len(ended.losses) == 20 and csv(root) == csv(tmp_path / "unbroken")


def test_a_run_that_ended_gives_its_result_without_a_model(tmp_path, caplog):
    *_, first = train(tmp_path, settings())
    caplog.set_level(logging.INFO, "textinv")
    host = FakeHost()
    started, ended = train(tmp_path, settings(), host)
    assert host.did == [] and "has been trained on this already" in caplog.text
    assert isinstance(started, Started) and same(ended.learnt, first.learnt)
    assert ended.path == first.path and len(ended.losses) == 6
    assert dict(ended.learnt.metadata) == dict(first.learnt.metadata)
    started.finish()


def test_more_steps_go_on_and_both_are_said(tmp_path, unbroken):
    train(tmp_path / "run", settings(6))
    events = train(tmp_path / "run", settings(20, save_every=5), preview=Preview())
    assert steps(events)[0] == 7 and same(events[-1].learnt, unbroken.learnt)
    [folder] = folders(tmp_path / "run")
    told = json.loads((folder / "settings.json").read_text())
    assert told["steps"] == 20 and told["save_every"] == 5
    assert told["before"] == [{"until_step": 6, "steps": 6, "save_every": 0, "preview": None}]
    assert csv(tmp_path / "run") == csv(tmp_path / "unbroken")


def test_fewer_steps_take_a_copy_where_there_is_one(tmp_path, caplog):
    *_, ended = train(tmp_path, settings(6, save_every=2))
    caplog.set_level(logging.INFO, "textinv")
    *events, four = train(tmp_path, settings(4))
    assert four.learnt.step == 4 and four.losses == pytest.approx(ended.losses[:4], abs=1e-7) and not steps(events)
    events = train(tmp_path, settings(3))
    assert steps(events) == [1, 2, 3] and len(folders(tmp_path)) == 2
    assert "has no copy of step 3" in caplog.text


def test_another_setting_is_another_run_and_is_named(tmp_path, caplog):
    caplog.set_level(logging.INFO, "textinv")
    train(tmp_path, settings())
    events = train(tmp_path, settings(learning_rate="0.01"))
    assert steps(events)[0] == 1 and len(folders(tmp_path)) == 2
    assert "learning_rate was 0.002 and is now 0.01" in caplog.text
    assert steps(train(tmp_path, settings(), shuffle=ShuffleConfig("all"))) and len(folders(tmp_path)) == 3


def test_fresh_begins_anew(tmp_path):
    train(tmp_path, settings())
    assert steps(train(tmp_path, settings(resume="fresh"))) == [1, 2, 3, 4, 5, 6]
    assert len(folders(tmp_path)) == 2


def test_required_needs_something_to_go_on_with(tmp_path):
    with pytest.raises(UserError, match="no run of 'cat' to go on with"):
        train(tmp_path, settings(resume="required"))
    train(tmp_path, settings(), stop_after=2)
    with pytest.raises(UserError, match=r"seed was 0 and is now 3\."):
        train(tmp_path, settings(resume="required", seed=3))
    assert len(folders(tmp_path)) == 1
    assert steps(train(tmp_path, settings(resume="required"))) == [3, 4, 5, 6]
    assert not steps(train(tmp_path, settings(resume="required")))


def test_a_damaged_state_costs_the_steps_since_the_one_before(tmp_path, unbroken, caplog, monkeypatch):
    monkeypatch.setattr("textinv_core.training.record.STATE_STEPS", 5)
    monkeypatch.setattr("textinv_core.training.record.STATE_SHARE", 1)
    root = tmp_path / "run"
    train(root, settings(20), stop_after=12)
    [folder] = folders(root)
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["10.safetensors", "12.safetensors"]
    newest = folder / "state" / "12.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    events = train(root, settings(20))
    assert steps(events)[0] == 11 and same(events[-1].learnt, unbroken.learnt)
    assert "12.safetensors' is damaged" in caplog.text
    assert csv(root) == csv(tmp_path / "unbroken")
    assert sorted(path.name for path in (folder / "state").iterdir()) == ["15.safetensors", "20.safetensors"]


@pytest.mark.parametrize("lose", [lambda state: state.write_bytes(b"x"), lambda state: state.unlink()])
def test_a_run_that_has_ended_and_lost_its_states_is_left_alone(tmp_path, caplog, lose):
    *_, ended = train(tmp_path, settings(4))
    [folder] = folders(tmp_path)
    before = ended.path.read_bytes()
    for state in (folder / "state").iterdir():
        lose(state)
    assert steps(train(tmp_path, settings(6)))[0] == 1
    assert f"Its newest copy is {ended.path}" in caplog.text
    assert len(folders(tmp_path)) == 2 and ended.path.read_bytes() == before
    assert not steps(train(tmp_path, settings(4)))


def test_a_run_without_a_state_begins_anew_in_its_folder(tmp_path, unbroken):
    root = tmp_path / "run"
    train(root, settings(20), stop_after=3)
    [folder] = folders(root)
    (folder / "state" / "3.safetensors").unlink()
    events = train(root, settings(20))
    assert steps(events)[0] == 1 and same(events[-1].learnt, unbroken.learnt)
    assert csv(root) == csv(tmp_path / "unbroken")


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, "textinv")
    train(tmp_path, settings(), stop_after=3)
    [folder] = folders(tmp_path)
    with RunFolder(folder).claimed() as mine:
        assert mine
        with pytest.raises(UserError, match="is being trained by another process"):
            train(tmp_path, settings(resume="required"))
        assert steps(train(tmp_path, settings()))[0] == 1
        assert f". The one in {folder} is being trained by another process." in caplog.text
    assert len(folders(tmp_path)) == 2


def test_where_files_cannot_be_locked_runs_are_trained_and_gone_on_with(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")  # as on Lustre, mounted without

    monkeypatch.setattr(fcntl, "flock", flock)
    train(tmp_path, settings(), stop_after=3)
    assert steps(train(tmp_path, settings())) == [4, 5, 6]


def test_of_several_that_fit_one_that_has_ended_is_taken_else_the_farthest(tmp_path):
    train(tmp_path, settings(20), stop_after=8)
    train(tmp_path, settings(5))  # of whose step the first has no copy
    assert len(folders(tmp_path)) == 2
    *events, ended = train(tmp_path, settings(20))
    assert steps(events)[0] == 9
    train(tmp_path, settings(20, resume="fresh"), stop_after=3)
    *events, again = train(tmp_path, settings(20))
    assert not steps(events) and again.path == ended.path


def test_settings_that_cannot_be_read_are_said(tmp_path, caplog):
    train(tmp_path, settings(), stop_after=3)
    [folder] = folders(tmp_path)
    (folder / "settings.json").write_text("{")
    assert steps(train(tmp_path, settings()))[0] == 1
    assert f"the settings.json in {folder} cannot be read" in caplog.text


def test_a_run_that_had_no_memory_left_goes_on_where_it_stopped(tmp_path, unbroken):
    def change(prediction, number):
        if number > 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prediction

    with pytest.raises(UserError, match="not enough memory"):
        train(tmp_path / "run", settings(20), FakeHost(FakeModel(change=change)))
    events = train(tmp_path / "run", settings(20))
    assert steps(events)[0] == 11 and same(events[-1].learnt, unbroken.learnt)


def test_a_diverged_run_is_not_gone_on_with_past_what_was_good(tmp_path):
    host = FakeHost(FakeModel(change=lambda prediction, number: prediction * (float("nan") if number > 40 else 1)))
    for begun in (1, 1):
        events = []
        with pytest.raises(UserError, match="diverged"):
            for event in learn(host, fake_pictures(), fake_embedding(), settings(20), tmp_path):
                events.append(event)
        assert steps(events)[0] == begun
        host.model.calls.clear()


def test_finishing_ends_a_run_as_its_end_does(tmp_path, unbroken):
    learning = learn(FakeHost(), fake_pictures(), fake_embedding(), settings(20), tmp_path / "run")
    events = []
    for event in learning:
        events.append(event)
        if isinstance(event, Step) and event.step == 4:
            next(event for event in events if isinstance(event, Started)).finish()
    assert steps(events)[-1] == 5 and events[-1].learnt.step == 5 and events[-1].path
    *_, ended = train(tmp_path / "run", settings(20))
    assert same(ended.learnt, unbroken.learnt)


# The fixed loss


def fixed_losses(root):
    [folder] = folders(root)
    return (folder / "fixed_loss.csv").read_bytes()


@pytest.mark.parametrize("stop", [3, 4, 10, 11])
def test_fixed_losses_and_the_best_step_go_on_too(tmp_path, stop):
    told = settings(16, evaluate_every=4, learning_rate="0.02:9, 5")
    unbroken = train(tmp_path / "unbroken", told)[-1]
    train(tmp_path / "broken", told, stop_after=stop)
    ended = train(tmp_path / "broken", told)[-1]
    assert fixed_losses(tmp_path / "broken") == fixed_losses(tmp_path / "unbroken")
    assert fixed_losses(tmp_path / "broken").count(b"\n") == 6
    assert unbroken.best.step == 4
    assert ended.best.step == unbroken.best.step and same(ended.best, unbroken.best) and ended.best_path.is_file()


def test_a_state_of_before_its_steps_evaluation_is_enough(tmp_path, monkeypatch):
    told = settings(12, evaluate_every=4)
    train(tmp_path / "unbroken", told)
    # Killed while the fixed loss of step 8 is taken, or written.
    monkeypatch.setattr("textinv_core.training.record.STATE_SECONDS", 0)
    train(tmp_path / "broken", told, stop_after=8)
    assert fixed_losses(tmp_path / "broken").count(b"\n") == 3
    train(tmp_path / "broken", told)
    assert fixed_losses(tmp_path / "broken") == fixed_losses(tmp_path / "unbroken")


def test_a_run_killed_before_its_end_was_made_has_all_that_comes_at_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("textinv_core.training.record.STATE_STEPS", 4)
    monkeypatch.setattr("textinv_core.training.record.STATE_SHARE", 1)
    told = settings(16, evaluate_every=2, save_every=8, learning_rate="0.02:9, 5")
    confirm = Training.confirm

    def killed(training):
        if not (tmp_path / "killed").exists():
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")
        confirm(training)

    monkeypatch.setattr(Training, "confirm", killed)
    whole = train(tmp_path / "whole", told)[-1]
    *events, ended = train(tmp_path / "killed", told)
    assert whole.best.step not in (8, 16)  # of which there are copies anyway
    assert not steps(events) and same(ended.best, whole.best) and ended.verdict == whole.verdict


def test_the_best_is_found_again_where_its_copy_is_gone_or_the_start_was_not_evaluated(tmp_path):
    told = settings(16, evaluate_every=4, learning_rate="0.02:9, 5")
    train(tmp_path, settings(16, evaluate_every=0, learning_rate="0.02:9, 5"), stop_after=3)
    first = train(tmp_path, told)[-1]
    assert first.best.step == 4
    assert same(train(tmp_path, told)[-1].best, first.best)
    first.best_path.unlink()
    assert same(train(tmp_path, told)[-1].best, first.best) and first.best_path.is_file()


def test_evaluating_otherwise_is_the_same_run_and_holding_out_is_not(tmp_path, unbroken):
    train(tmp_path / "run", settings(20, evaluate_every=3), stop_after=7)
    events = train(tmp_path / "run", settings(20, evaluate_every=0, early_stop="off", patience=2))
    assert steps(events)[0] == 8 and same(events[-1].learnt, unbroken.learnt)
    train(tmp_path / "run", settings(20, held_out=1))
    assert len(folders(tmp_path / "run")) == 2


def test_a_run_that_has_learnt_enough_gives_its_result_at_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, "textinv")
    told = settings(60, evaluate_every=2, early_stop="patience", patience=1, learning_rate="0.05")
    first = train(tmp_path, told)[-1]
    assert first.learnt.step < 60
    host = FakeHost()
    *_, again = train(tmp_path, told, host)
    assert host.did == [] and same(again.learnt, first.learnt) and again.path == first.path
    assert first.best.step < first.learnt.step and same(again.best, first.best) and again.best_path == first.best_path
    assert "By early_stop patience it had learnt enough there; off goes on" in caplog.text
    # With more patience, or none of it, there is more to learn.
    more = train(tmp_path, settings(first.learnt.step + 1, evaluate_every=2, learning_rate="0.05"))
    assert steps(more) == [first.learnt.step + 1]


def test_all_of_a_step_is_kept_before_its_state(tmp_path, monkeypatch):
    """Else a run killed between the two would go on without it."""
    monkeypatch.setattr("textinv_core.training.record.STATE_STEPS", 5)
    monkeypatch.setattr("textinv_core.training.record.STATE_SHARE", 1)
    kept = []
    save_state = RunFolder.save_state

    def look(folder, state):
        copies = {path.name for path in folder.path.glob("embeddings/*")}
        evaluated = (folder.path / "fixed_loss.csv").read_text().splitlines()[-1].split(",")[0]
        kept.append((state["step"], f"cat-{state['step']}.safetensors" in copies, int(evaluated)))
        save_state(folder, state)

    monkeypatch.setattr(RunFolder, "save_state", look)
    train(tmp_path, settings(10, save_every=5, evaluate_every=5))
    assert kept == [(5, True, 5), (10, True, 10)]


def test_fewer_steps_take_the_copy_of_a_run_that_has_not_ended(tmp_path, unbroken):
    train(tmp_path / "run", settings(20, save_every=4), stop_after=10)
    events = train(tmp_path / "run", settings(8))
    assert not steps(events) and events[-1].learnt.step == 8 and len(events[-1].losses) == 8
    *_, ended = train(tmp_path / "run", settings(20))
    assert same(ended.learnt, unbroken.learnt) and len(folders(tmp_path / "run")) == 1
