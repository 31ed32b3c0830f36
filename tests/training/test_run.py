"""The folder of a run, whatever ends it."""

import io
import logging
import math
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors import safe_open

from tests.fakes import (
    FakeModel,
    Interrupted,
    fake_embedding,
    fake_examples,
    numbered_embedding,
    run_training,
    same,
    train,
)
from textinv_core import load_embedding
from textinv_core.errors import TrainingError
from textinv_core.shuffle import ShuffleConfig
from textinv_core.signals import SIGNALS
from textinv_core.training import folder as folder_module
from textinv_core.training import run as run_module
from textinv_core.training.evaluation import Evaluated
from textinv_core.training.folder import RunFolder
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.run import Ended, Saved, duration, run
from textinv_core.training.settings import TrainSettings
from textinv_core.training.state import write_state
from textinv_core.training.training import Step, Training

CSV = "textual_inversion_loss.csv"


def settings(steps=6, **more):
    told = {"steps": steps, "gradient_accumulation": 1, "save_every": 0, "evaluate_every": 0, **more}
    return TrainSettings(("[name], [filewords]",), **told)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rows(folder):
    header, *lines = (folder / CSV).read_text().splitlines()
    assert header == "step,epoch,epoch_step,loss,learn_rate"
    return [line.split(",") for line in lines]


def stored(folder, step):
    return load_embedding(folder / "embeddings" / f"cat-{step}.safetensors")


def stop_after(step, error=Interrupted):
    def on_step(progress):
        if progress.step == step:
            raise error("stop")

    return on_step


def spoilt_from(call):
    return lambda prediction, number: prediction * math.nan if number >= call else prediction


@pytest.fixture
def expected():
    """Step -> (loss, embedding) of the same training without a folder."""
    run = train(FakeModel(), fake_examples(), fake_embedding(), settings(20))
    return {progress.step: (progress.loss, progress.learnt) for progress in run}


# A training that ends well


def test_a_run_leaves_its_settings_losses_and_embedding(tmp_path, expected):
    trained = run_training(FakeModel(), fake_examples(), fake_embedding(), settings(6), tmp_path)
    assert files(tmp_path) == ["embeddings/cat-6.safetensors", "state/6.safetensors", CSV]
    assert trained.path == tmp_path / "embeddings" / "cat-6.safetensors"
    assert trained.losses == [expected[step][0] for step in range(1, 7)]
    assert trained.learnt.step == 6 and same(trained.learnt, expected[6][1])
    assert stored(tmp_path, 6).step == 6 and same(stored(tmp_path, 6), trained.learnt)


def test_a_shuffle_is_passed_on(tmp_path):
    model = FakeModel()
    told = settings(4, learning_rate="0")
    run_training(model, fake_examples(), numbered_embedding(4, 4), told, tmp_path, ShuffleConfig("all"))
    orders = {tuple(asked.rows[:, 0].tolist()) for asked in model.asked}
    assert len(orders) > 1


@pytest.mark.parametrize(
    ("pictures", "batch_size", "accumulation", "epochs", "epoch_steps"),
    [
        (3, 1, 1, "00011122", "01201201"),
        (5, 2, 1, "00011122", "01201201"),
        (5, 1, 2, "00011222", "01201012"),  # 5 batches an epoch, 2 a step
    ],
)
def test_rows_of_the_losses(tmp_path, pictures, batch_size, accumulation, epochs, epoch_steps):
    told = settings(8, batch_size=batch_size, gradient_accumulation=accumulation, learning_rate="0.01:4, 0.00025")
    trained = run_training(FakeModel(), fake_examples(pictures), fake_embedding(), told, tmp_path)
    written = rows(tmp_path)
    assert [row[:3] for row in written] == [[*each] for each in zip("12345678", epochs, epoch_steps, strict=True)]
    assert [row[3] for row in written] == [f"{loss:.7f}" for loss in trained.losses]
    assert [row[4] for row in written] == ["0.01"] * 4 + ["0.00025"] * 4


def test_steps_are_counted_on(tmp_path):
    trained = run_training(FakeModel(), fake_examples(), fake_embedding(step=7), settings(10), tmp_path)
    assert [row[0] for row in rows(tmp_path)] == ["8", "9", "10"]
    assert len(trained.losses) == 3
    assert files(tmp_path)[0] == "embeddings/cat-10.safetensors"


@pytest.mark.parametrize(("every", "saved"), [(2, [2, 4, 6, 7]), (7, [7]), (5, [5, 7]), (0, [7]), (99, [7])])
def test_copies_on_the_way(tmp_path, expected, every, saved):
    run_training(FakeModel(), fake_examples(), fake_embedding(), settings(7, save_every=every), tmp_path)
    assert files(tmp_path / "embeddings") == [f"cat-{step}.safetensors" for step in saved]
    for step in saved:
        assert stored(tmp_path, step).step == step and same(stored(tmp_path, step), expected[step][1])


def test_files_say_what_the_embedding_was_trained_at(tmp_path):
    embedding = fake_embedding(metadata={"textinv.base_model": "abc", "modelspec.resolution": "640x512"})
    run_training(FakeModel(), fake_examples(), embedding, settings(2, save_every=1), tmp_path)
    for step in (1, 2):
        with safe_open(tmp_path / "embeddings" / f"cat-{step}.safetensors", "pt") as file:
            facts = file.metadata()
        assert facts["modelspec.resolution"] == "640x512"
        assert facts["textinv.base_model"] == "abc"


def test_each_step_is_told(tmp_path, expected):
    told = []
    arguments = FakeModel(), fake_examples(), fake_embedding(), settings(4), tmp_path
    run_training(*arguments, on_step=lambda progress: told.append((progress.step, progress.last_step, progress.loss)))
    assert told == [(step, 4, expected[step][0]) for step in range(1, 5)]


def test_the_log_says_how_it_goes(tmp_path, expected, caplog):
    caplog.set_level(logging.INFO, "textinv")
    run_training(FakeModel(), fake_examples(), fake_embedding(), settings(14), tmp_path)
    assert [record.name for record in caplog.records] == ["textinv"] * 2
    tenth, last = caplog.messages
    mean = sum(expected[step][0] for step in range(1, 11)) / 10
    assert f"cat, step 10/14, loss {expected[10][0]:.4f} (mean of 10: {mean:.4f}), rate 0.002" in tenth
    assert "step 14/14" in last


def test_what_happens_is_told_in_order(tmp_path):
    training = Training(FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), settings(5, save_every=2))
    events = list(run(training, RunFolder(tmp_path)))
    assert [type(event) for event in events] == [Step, Step, Saved, Step, Step, Saved, Step, Ended]
    copies = [event for event in events if isinstance(event, Saved)]
    assert [(copy.step, copy.path.name) for copy in copies] == [(2, "cat-2.safetensors"), (4, "cat-4.safetensors")]


@pytest.mark.parametrize(("keep", "left"), [(0, [2, 4, 6, 8, 9]), (1, [8, 9]), (3, [4, 6, 8, 9])])
def test_only_the_newest_copies_are_kept_and_the_last(tmp_path, keep, left):
    told = settings(9, save_every=2, keep=keep)
    run_training(FakeModel(), fake_examples(), fake_embedding(), told, tmp_path)
    assert [step for step in range(10) if (tmp_path / f"embeddings/cat-{step}.safetensors").exists()] == left


def test_copies_are_kept_within_bounds_by_a_run_that_is_gone_on_with(tmp_path):
    """And what the stop itself has left, between two of them, stays."""
    told = settings(12, save_every=2, keep=2)
    with pytest.raises(Interrupted):
        run_training(FakeModel(), fake_examples(), fake_embedding(), told, tmp_path, on_step=stop_after(7))
    state = RunFolder(tmp_path).newest_state()
    training = Training(FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), told, state=state)
    list(run(training, RunFolder(tmp_path)))
    left = [step for step in range(13) if (tmp_path / f"embeddings/cat-{step}.safetensors").exists()]
    assert left == [7, 10, 12]


def test_to_finish_early_is_to_stop_listening(tmp_path, expected):
    training = Training(FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), settings())
    events = run(training, RunFolder(tmp_path))
    assert [next(events).step for _ in range(2)] == [1, 2]
    events.close()
    assert same(stored(tmp_path, 2), expected[2][1]) and len(rows(tmp_path)) == 2


def test_a_process_without_a_folder_writes_and_logs_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "textinv")
    training = Training(FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), settings(10, save_every=1))
    *_, ended = run(training, None)
    assert ended.learnt.step == 10 and ended.path is None and len(ended.losses) == 10
    assert not caplog.messages


# The fixed loss


def by_fixed_loss(losses, told):
    """A training whose fixed losses are these, one after another."""

    class Losing(Training):
        def _probed(self, batch):
            return torch.full((len(batch),), losses[len(self.evaluations)])

    return Losing(FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), told)


def test_the_fixed_loss_is_taken_on_the_way(tmp_path, expected, caplog):
    caplog.set_level(logging.INFO, "textinv")
    training = Training(FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), settings(evaluate_every=4))
    events = list(run(training, RunFolder(tmp_path)))
    assert [type(event) for event in events] == [
        Evaluated, Step, Step, Step, Step, Evaluated, Step, Step, Evaluated, Ended
    ]  # fmt: skip
    found = [event for event in events if isinstance(event, Evaluated)]
    assert [each.step for each in found] == [0, 4, 6]
    header, *lines = (tmp_path / "fixed_loss.csv").read_text().splitlines()
    assert header == "step,loss"
    assert [(int(step), float(loss)) for step, loss in (line.split(",") for line in lines)] == [
        (each.step, each.loss) for each in found
    ]
    assert f"cat, step 4, fixed loss {found[1].loss:.4f}, the lowest so far" in caplog.messages[1]
    assert caplog.messages[0].endswith(f"cat, step 0, fixed loss {found[0].loss:.4f}")
    assert same(events[-1].learnt, expected[6][1])  # as without


def test_the_best_step_is_kept_and_given(tmp_path, expected):
    told = settings(evaluate_every=1, save_every=6)
    *_, ended = run(by_fixed_loss([1.0, 0.9, 0.5, 0.4, 0.6, 0.6, 0.5], told), RunFolder(tmp_path))
    assert ended.best.step == 3 and same(ended.best, expected[3][1])
    assert ended.best_path == tmp_path / "embeddings" / "cat-3.safetensors"
    assert same(load_embedding(ended.best_path), ended.best)
    assert files(tmp_path / "embeddings") == ["cat-3.safetensors", "cat-6.safetensors"]
    assert RunFolder(tmp_path).newest() == ended.path


def test_without_the_fixed_loss_no_step_is_best(tmp_path):
    *_, ended = run(by_fixed_loss([], settings()), RunFolder(tmp_path))
    assert ended.best is None and ended.best_path is None
    assert not (tmp_path / "fixed_loss.csv").exists()


def test_a_run_ends_when_it_has_learnt_enough(tmp_path, expected, caplog):
    caplog.set_level(logging.INFO, "textinv")
    told = settings(20, evaluate_every=2, early_stop="patience", patience=2)
    events = list(run(by_fixed_loss([1.0, 0.5, 0.6, 0.7], told), RunFolder(tmp_path)))
    assert events[-1].learnt.step == 6 and events[-1].best.step == 2
    assert isinstance(events[-2], Evaluated) and len(rows(tmp_path)) == 6
    assert stored(tmp_path, 6).step == 6
    said = "cat ends at step 6 of 20: the fixed loss no longer falls (early_stop patience)."
    assert any(said in message for message in caplog.messages)


def test_a_stopped_run_keeps_its_best_step_and_the_last(tmp_path, expected):
    events = run(by_fixed_loss([1.0, 0.5, 0.6, 0.7, 0.8], settings(evaluate_every=1)), RunFolder(tmp_path))
    while not (isinstance(event := next(events), Evaluated) and event.step == 4):
        pass
    events.close()
    assert files(tmp_path / "embeddings") == ["cat-1.safetensors", "cat-4.safetensors"]
    assert same(load_embedding(RunFolder(tmp_path).newest()), expected[4][1])


def test_a_full_disk_costs_no_fixed_loss(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "write_atomically", full)
        events = run(by_fixed_loss([0.3, 0.2, 0.1, 0.1], settings(3, evaluate_every=1)), RunFolder(tmp_path))
        for event in events:
            if isinstance(event, Evaluated) and event.step == 2:
                break
    *_, ended = events
    assert ended.best.step == 2
    assert (tmp_path / "fixed_loss.csv").read_text().count("\n") == 5


# A training that does not


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_what_was_learnt_before_an_interrupt_is_kept(tmp_path, expected, step, every):
    model = FakeModel()
    told = settings(6, save_every=every)
    with pytest.raises(Interrupted, match=r"^stop$"):
        run_training(model, fake_examples(), fake_embedding(), told, tmp_path, on_step=stop_after(step))
    assert len(model.calls) == step
    assert same(stored(tmp_path, step), expected[step][1]) and stored(tmp_path, step).step == step
    assert [row[0] for row in rows(tmp_path)] == [str(n) for n in range(1, step + 1)]
    assert rows(tmp_path)[-1][3] == f"{expected[step][0]:.7f}"
    on_the_way = {n for n in range(1, step + 1) if every and n % every == 0}
    assert files(tmp_path / "embeddings") == [f"cat-{n}.safetensors" for n in sorted(on_the_way | {step})]


def test_an_interrupt_in_the_midst_of_a_step_keeps_the_step_before(tmp_path, expected):
    def interrupt(prediction, call):
        if call == 4:
            raise Interrupted
        return prediction

    with pytest.raises(Interrupted):
        run_training(FakeModel(change=interrupt), fake_examples(), fake_embedding(), settings(), tmp_path)
    assert files(tmp_path / "embeddings") == ["cat-3.safetensors"]
    assert same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3


def test_an_interrupt_just_after_the_vectors_changed_keeps_the_step_before(tmp_path, expected, monkeypatch):
    class Interrupting(torch.optim.AdamW):
        steps = 0

        def step(self, closure=None):
            super().step(closure)
            self.steps += 1
            if self.steps == 4:
                raise Interrupted

    monkeypatch.setattr(torch.optim, "AdamW", Interrupting)
    with pytest.raises(Interrupted):
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path)
    assert files(tmp_path / "embeddings") == ["cat-3.safetensors"]
    assert stored(tmp_path, 3).step == 3 and same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3


def test_an_interrupt_of_the_last_save_loses_nothing(tmp_path, expected, monkeypatch):
    save, tries = folder_module.save_embedding, []

    def interrupted_once(*arguments):
        tries.append(arguments)
        if len(tries) == 1:
            raise Interrupted
        save(*arguments)

    monkeypatch.setattr(folder_module, "save_embedding", interrupted_once)
    with pytest.raises(Interrupted):
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path)
    assert same(stored(tmp_path, 6), expected[6][1])


@pytest.fixture
def handlers():
    """Ctrl-C, SIGTERM and SIGHUP raise, as in the command line's processes; what they are set to."""

    def end(number, frame):
        raise SystemExit(128 + number)

    ours = {**dict.fromkeys(SIGNALS, end), signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield ours
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("written", ["save_embedding", "open"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_second_interrupt_does_not_disturb_the_save(tmp_path, expected, monkeypatch, handlers, number, written):
    write = getattr(folder_module, written, open)

    def disturbed(*arguments):
        signal.raise_signal(number)
        return write(*arguments)

    def on_step(progress):
        if progress.step == 3:
            monkeypatch.setattr(folder_module, written, disturbed, raising=False)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path, on_step=on_step)
    assert same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_a_save_that_fails_gives_the_signals_back(tmp_path, monkeypatch, handlers, full):
    full.is_full = True
    with pytest.raises(Interrupted):
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path, on_step=stop_after(3))
    assert {n: signal.getsignal(n) for n in handlers} == handlers


@pytest.mark.usefixtures("handlers")
def test_signals_set_by_others_than_python_are_left_alone(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with pytest.raises(Interrupted):
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path, on_step=stop_after(3))
    assert same(stored(tmp_path, 3), expected[3][1])


def test_an_interrupt_in_another_thread_keeps_what_was_learnt(tmp_path, expected):
    arguments = FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path
    with ThreadPoolExecutor(1) as worker, pytest.raises(Interrupted):
        worker.submit(run_training, *arguments, on_step=stop_after(3)).result()
    assert same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3


# A disk that is full


class Disk:
    """Whether nothing can be written into run folders; a line of the losses is begun all the same."""

    is_full = False


@pytest.fixture
def full(monkeypatch):
    disk = Disk()
    save, opened = folder_module.save_embedding, open

    def save_if_room(*arguments):
        if disk.is_full:
            raise OSError(28, "No space left on device")
        save(*arguments)

    class Begun(io.FileIO):
        def write(self, data):
            super().write(data[:5])
            raise OSError(28, "No space left on device")

    def open_if_room(path, mode="r", **how):
        return Begun(path, "a") if disk.is_full and "a" in mode else opened(path, mode, **how)

    def write_if_room(*arguments):
        if disk.is_full:
            raise OSError(28, "No space left on device")
        write_state(*arguments)

    monkeypatch.setattr(folder_module, "save_embedding", save_if_room)
    monkeypatch.setattr(folder_module, "write_state", write_if_room)
    monkeypatch.setattr(folder_module, "open", open_if_room, raising=False)
    return disk


def test_a_full_disk_does_not_end_the_training_and_is_told_once(tmp_path, expected, full, caplog):
    def on_step(step):
        full.is_full = 2 <= step.step < 6

    told = settings(8, save_every=1)
    ended = run_training(FakeModel(), fake_examples(), fake_embedding(), told, tmp_path, on_step=on_step)
    assert same(ended.learnt, expected[8][1]) and ended.path == tmp_path / "embeddings" / "cat-8.safetensors"
    # Copies are tried again, and no line of the losses is lost or broken.
    assert files(tmp_path / "embeddings") == [f"cat-{step}.safetensors" for step in (1, 6, 7, 8)]
    assert [row[0] for row in rows(tmp_path)] == [*"12345678"]
    assert caplog.text.count("No space left") == 1 and "goes on" in caplog.text


def test_a_disk_that_stays_full_costs_the_copies_alone(tmp_path, expected, full, caplog):
    full.is_full = True
    ended = run_training(FakeModel(), fake_examples(), fake_embedding(), settings(6, save_every=2), tmp_path)
    assert ended.path is None and same(ended.learnt, expected[6][1])
    assert ended.losses == [expected[step][0] for step in range(1, 7)]
    assert "could not be kept" in caplog.text
    assert not [file for file in files(tmp_path) if file.endswith(".safetensors")]


@pytest.mark.parametrize("is_freed", [False, True])
def test_an_interrupt_while_the_disk_is_full(tmp_path, expected, full, is_freed, caplog):
    def on_step(step):
        full.is_full = step.step < 3 or not is_freed
        if step.step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path, on_step=on_step)
    if is_freed:
        assert same(stored(tmp_path, 3), expected[3][1])
        assert [row[0] for row in rows(tmp_path)] == [*"123"]
    assert ("step 3 could not be kept; there is no copy" in caplog.text) != is_freed


@pytest.fixture
def refuges(tmp_path, monkeypatch):
    """What can be written into besides a run's folder: where the root lies, the system's temporary folder, home."""
    places = [tmp_path / name for name in ("output", "temporary", "home")]
    for place in places:
        place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(places[1]))
    monkeypatch.setenv("HOME", str(places[2]))
    monkeypatch.setenv("USERPROFILE", str(places[2]))
    return places


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_what_the_folder_cannot_take_is_kept_wherever_it_can_be(expected, refuges, is_stopped, first, caplog):
    folder = RunFolder.new(refuges[0] / "root", "cat")
    (folder.path / "embeddings").write_text("no folder, so nothing can be written into it")
    for gone in refuges[:first]:
        shutil.rmtree(gone)
    arguments = FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), settings(save_every=1)
    events = run(Training(*arguments), folder)
    step = 3 if is_stopped else 6
    for _ in range(step):
        next(events)
    if is_stopped:
        events.close()
    else:
        assert next(events).path == refuges[first] / "cat-6.safetensors"
    kept = refuges[first] / f"cat-{step}.safetensors"
    assert folder.newest() == kept and same(load_embedding(kept), expected[step][1])
    assert f"kept in {kept}" in caplog.text and "What was learnt is in memory" in caplog.text


def test_an_interrupt_of_the_last_rescue_loses_nothing(expected, refuges, monkeypatch):
    folder = RunFolder.new(refuges[0] / "root", "cat")
    save, tries = folder_module.save_embedding, []

    def interrupted_once(embedding, path):
        if path.is_relative_to(folder.path):
            raise OSError(28, "No space left on device")
        tries.append(path)
        if len(tries) == 1:
            raise Interrupted
        save(embedding, path)

    monkeypatch.setattr(folder_module, "save_embedding", interrupted_once)
    arguments = FakeModel(), fake_examples(), LearnableEmbedding(fake_embedding()), settings()
    with pytest.raises(Interrupted):
        [*run(Training(*arguments), folder)]
    assert same(load_embedding(refuges[0] / "cat-6.safetensors"), expected[6][1])


def test_losses_that_cannot_be_written_do_not_cost_the_embedding(tmp_path, expected):
    (tmp_path / CSV).mkdir()
    with pytest.raises(Interrupted):
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path, on_step=stop_after(3))
    assert same(stored(tmp_path, 3), expected[3][1])


def test_a_line_of_the_losses_that_was_being_written_is_whole_afterwards(tmp_path, monkeypatch):
    append = RunFolder.append_losses

    def interrupted(self, losses):
        append(self, losses)
        if losses[0].step == 3:
            with open(tmp_path / CSV, "a") as file:
                file.write("3,1,")
            monkeypatch.undo()
            raise Interrupted

    monkeypatch.setattr(RunFolder, "append_losses", interrupted)
    with pytest.raises(Interrupted):
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path)
    assert [row[0] for row in rows(tmp_path)] == [*"123"]


# Errors


def test_a_training_error_says_what_is_kept_where(tmp_path, expected):
    model = FakeModel(change=spoilt_from(4))
    with pytest.raises(TrainingError, match=r"loss of step 4 is nan.*embedding of step 2 is kept in") as caught:
        run_training(model, fake_examples(), fake_embedding(), settings(), tmp_path)
    # What the loss was computed from, step 3's, has gone wrong already.
    kept = tmp_path / "embeddings" / "cat-2.safetensors"
    assert str(kept) in str(caught.value) and RunFolder(tmp_path).newest() == kept
    assert same(stored(tmp_path, 2), expected[2][1])
    assert len(rows(tmp_path)) == 3


def test_copies_of_what_gave_no_finite_loss_are_taken_back(tmp_path, expected):
    model = FakeModel(change=spoilt_from(4))
    with pytest.raises(TrainingError, match="embedding of step 2 is kept in"):
        run_training(model, fake_examples(), fake_embedding(), settings(save_every=1), tmp_path)
    assert files(tmp_path / "embeddings") == ["cat-1.safetensors", "cat-2.safetensors"]
    with pytest.raises(TrainingError, match="Nothing was learnt"):
        run_training(
            FakeModel(change=spoilt_from(2)), fake_examples(), fake_embedding(), settings(save_every=1), tmp_path
        )
    assert not files(tmp_path / "embeddings")


def test_what_the_last_step_made_is_tried_too(tmp_path, expected):
    model = FakeModel(change=spoilt_from(7))
    with pytest.raises(TrainingError, match=r"The loss after step 6 is nan.*embedding of step 5 is kept in"):
        run_training(model, fake_examples(), fake_embedding(), settings(6, save_every=1), tmp_path)
    assert files(tmp_path / "embeddings") == [f"cat-{step}.safetensors" for step in range(1, 6)]
    assert same(stored(tmp_path, 5), expected[5][1])


def test_other_errors_pass_as_they_are(tmp_path):
    error = torch.OutOfMemoryError("CUDA out of memory")

    def on_step(progress):
        raise error

    with pytest.raises(torch.OutOfMemoryError) as caught:
        run_training(FakeModel(), fake_examples(), fake_embedding(), settings(), tmp_path, on_step=on_step)
    assert caught.value is error
    assert files(tmp_path / "embeddings") == ["cat-1.safetensors"]


def test_an_error_in_the_first_step_leaves_no_embedding(tmp_path):
    model = FakeModel(change=spoilt_from(1))
    with pytest.raises(TrainingError, match="loss of step 1 is nan") as caught:
        run_training(model, fake_examples(), fake_embedding(), settings(), tmp_path)
    assert "kept" not in str(caught.value)
    assert not any("safetensors" in file for file in files(tmp_path))


def test_a_bad_schedule_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="No step is left"):
        run_training(FakeModel(), fake_examples(), fake_embedding(step=6), settings(6), tmp_path)


@pytest.mark.parametrize(("slow", "times"), [(0, 1), (60, 0)])
def test_what_would_be_quicker_is_said_once_where_steps_take_long(tmp_path, monkeypatch, caplog, slow, times):
    monkeypatch.setattr(run_module, "SLOW", slow)
    run_training(FakeModel(), fake_examples(), fake_embedding(), settings(6), tmp_path)
    assert caplog.text.count("on this CPU. Quicker are smaller pictures") == times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599.9, "1 h 00 min"),
        (7384, "2 h 03 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
