"""The folder of a run, whatever ends it."""

import json
import logging
import math
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
import torch
from safetensors import safe_open

from textinv_core import load_embedding
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training import run as run_module
from textinv_core.training.loop import TrainingError, train
from textinv_core.training.run import _duration, new_run_folder, run_training
from textinv_core.training.settings import TrainSettings

CSV = "textual_inversion_loss.csv"


class Interrupted(BaseException):
    """As the host's interrupt, no Exception."""


def settings(steps=6, **more):
    return TrainSettings(
        ("[name], [filewords]",), **{"steps": steps, "gradient_accumulation": 1, "save_every": 0, **more}
    )


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def rows(folder):
    header, *lines = (folder / CSV).read_text().splitlines()
    assert header == "step,epoch,epoch_step,loss,learn_rate"
    return [line.split(",") for line in lines]


def stored(folder, step):
    return load_embedding(folder / "embeddings" / f"cat-{step}.safetensors")


def same(a, b):
    return a.vectors.keys() == b.vectors.keys() and all(torch.equal(a.vectors[k], b.vectors[k]) for k in a.vectors)


def stop_after(step, error=Interrupted):
    def on_step(progress):
        if progress.step == step:
            raise error("stop")

    return on_step


def spoilt_from(call):
    return lambda prediction, number: prediction * math.nan if number >= call else prediction


@pytest.fixture
def expected(make_model, make_examples, make_embedding):
    """Step -> (loss, embedding) of the same training without a folder."""
    run = train(make_model(), make_examples(), make_embedding(), settings(20))
    return {progress.step: (progress.loss, progress.embedding()) for progress in run}


# A training that ends well


def test_a_run_leaves_its_settings_losses_and_embedding(tmp_path, make_model, make_examples, make_embedding, expected):
    trained = run_training(make_model(), make_examples(), make_embedding(), settings(6), tmp_path)
    assert files(tmp_path) == ["embeddings/cat-6.safetensors", "settings.json", CSV]
    assert trained.folder == tmp_path
    assert trained.losses == [expected[step][0] for step in range(1, 7)]
    assert trained.embedding.step == 6 and same(trained.embedding, expected[6][1])
    assert stored(tmp_path, 6).step == 6 and same(stored(tmp_path, 6), trained.embedding)


def test_the_settings_are_all_there(tmp_path, make_model, make_examples, make_embedding):
    told = settings(2, learning_rate="0.01:5, 0.001", gradient_clipping="norm", seed=2**53)
    shuffle = ShuffleConfig("on", "batch", progressive_words=True)
    run_training(make_model(), make_examples(4), make_embedding(3, 2), told, tmp_path, shuffle)
    assert json.loads((tmp_path / "settings.json").read_text()) == {
        "template": ["[name], [filewords]"],
        "steps": 2,
        "learning_rate": "0.01:5, 0.001",
        "batch_size": 1,
        "gradient_accumulation": 1,
        "seed": 2**53,
        "gradient_clipping": "norm",
        "clip_at": 0.1,
        "min_timestep": 0,
        "max_timestep": 1000,
        "loss_weighting": "none",
        "gradient_checkpointing": "auto",
        "save_every": 0,
        "shuffle": {"mode": "all", "per": "batch", "progressive_words": True, "unlock_every": 2000},
        "embedding": "cat",
        "pictures": 4,
        "vectors": {"clip_l": [3, 4], "clip_g": [2, 6]},
    }


def test_a_shuffle_is_passed_on(tmp_path, make_model, make_examples, numbered_embedding):
    model = make_model()
    told = settings(4, learning_rate="0")
    run_training(model, make_examples(), numbered_embedding(4, 4), told, tmp_path, ShuffleConfig("all"))
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
def test_rows_of_the_losses(
    tmp_path, make_model, make_examples, make_embedding, pictures, batch_size, accumulation, epochs, epoch_steps
):
    told = settings(8, batch_size=batch_size, gradient_accumulation=accumulation, learning_rate="0.01:4, 0.00025")
    trained = run_training(make_model(), make_examples(pictures), make_embedding(), told, tmp_path)
    written = rows(tmp_path)
    assert [row[:3] for row in written] == [[*each] for each in zip("12345678", epochs, epoch_steps, strict=True)]
    assert [row[3] for row in written] == [f"{loss:.7f}" for loss in trained.losses]
    assert [row[4] for row in written] == ["0.01"] * 4 + ["0.00025"] * 4


def test_steps_are_counted_on(tmp_path, make_model, make_examples, make_embedding):
    trained = run_training(make_model(), make_examples(), make_embedding(step=7), settings(10), tmp_path)
    assert [row[0] for row in rows(tmp_path)] == ["8", "9", "10"]
    assert len(trained.losses) == 3
    assert files(tmp_path)[0] == "embeddings/cat-10.safetensors"


@pytest.mark.parametrize(("every", "saved"), [(2, [2, 4, 6, 7]), (7, [7]), (5, [5, 7]), (0, [7]), (99, [7])])
def test_copies_on_the_way(tmp_path, make_model, make_examples, make_embedding, expected, every, saved):
    run_training(make_model(), make_examples(), make_embedding(), settings(7, save_every=every), tmp_path)
    assert files(tmp_path / "embeddings") == [f"cat-{step}.safetensors" for step in saved]
    for step in saved:
        assert stored(tmp_path, step).step == step and same(stored(tmp_path, step), expected[step][1])


def test_files_say_what_the_embedding_was_trained_at(tmp_path, make_model, make_examples, make_embedding):
    embedding = make_embedding(metadata={"textinv.base_model": "abc", "modelspec.resolution": "640x512"})
    run_training(make_model(), make_examples(), embedding, settings(2, save_every=1), tmp_path)
    for step in (1, 2):
        with safe_open(tmp_path / "embeddings" / f"cat-{step}.safetensors", "pt") as file:
            facts = file.metadata()
        assert facts["modelspec.resolution"] == "640x512"
        assert facts["textinv.base_model"] == "abc"


def test_each_step_is_told(tmp_path, make_model, make_examples, make_embedding, expected):
    told = []
    arguments = make_model(), make_examples(), make_embedding(), settings(4), tmp_path
    run_training(*arguments, on_step=lambda progress: told.append((progress.step, progress.last_step, progress.loss)))
    assert told == [(step, 4, expected[step][0]) for step in range(1, 5)]


def test_the_log_says_how_it_goes(tmp_path, make_model, make_examples, make_embedding, expected, caplog):
    caplog.set_level(logging.INFO, "textinv")
    run_training(make_model(), make_examples(), make_embedding(), settings(14), tmp_path)
    assert [record.name for record in caplog.records] == ["textinv"] * 2
    tenth, last = caplog.messages
    mean = sum(expected[step][0] for step in range(1, 11)) / 10
    assert f"cat, step 10/14, loss {expected[10][0]:.4f} (mean of 10: {mean:.4f}), rate 0.002" in tenth
    assert "step 14/14" in last


# A training that does not


@pytest.mark.parametrize("every", [0, 1, 2])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_what_was_learnt_before_an_interrupt_is_kept(
    tmp_path, make_model, make_examples, make_embedding, expected, step, every
):
    model = make_model()
    told = settings(6, save_every=every)
    with pytest.raises(Interrupted, match=r"^stop$"):
        run_training(model, make_examples(), make_embedding(), told, tmp_path, on_step=stop_after(step))
    assert len(model.calls) == step
    assert same(stored(tmp_path, step), expected[step][1]) and stored(tmp_path, step).step == step
    assert [row[0] for row in rows(tmp_path)] == [str(n) for n in range(1, step + 1)]
    assert rows(tmp_path)[-1][3] == f"{expected[step][0]:.7f}"
    on_the_way = {n for n in range(1, step + 1) if every and n % every == 0}
    assert files(tmp_path / "embeddings") == [f"cat-{n}.safetensors" for n in sorted(on_the_way | {step})]


def test_an_interrupt_in_the_midst_of_a_step_keeps_the_step_before(
    tmp_path, make_model, make_examples, make_embedding, expected
):
    def interrupt(prediction, call):
        if call == 4:
            raise Interrupted
        return prediction

    with pytest.raises(Interrupted):
        run_training(make_model(change=interrupt), make_examples(), make_embedding(), settings(), tmp_path)
    assert files(tmp_path / "embeddings") == ["cat-3.safetensors"]
    assert same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3


def test_an_interrupt_just_after_the_vectors_changed_keeps_the_step_before(
    tmp_path, make_model, make_examples, make_embedding, expected, monkeypatch
):
    class Interrupting(torch.optim.AdamW):
        steps = 0

        def step(self, closure=None):
            super().step(closure)
            self.steps += 1
            if self.steps == 4:
                raise Interrupted

    monkeypatch.setattr(torch.optim, "AdamW", Interrupting)
    with pytest.raises(Interrupted):
        run_training(make_model(), make_examples(), make_embedding(), settings(), tmp_path)
    assert files(tmp_path / "embeddings") == ["cat-3.safetensors"]
    assert stored(tmp_path, 3).step == 3 and same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3


def test_an_interrupt_of_the_last_save_loses_nothing(
    tmp_path, make_model, make_examples, make_embedding, expected, monkeypatch
):
    save, tries = run_module.save_embedding, []

    def interrupted_once(*arguments):
        tries.append(arguments)
        if len(tries) == 1:
            raise Interrupted
        save(*arguments)

    monkeypatch.setattr(run_module, "save_embedding", interrupted_once)
    with pytest.raises(Interrupted):
        run_training(make_model(), make_examples(), make_embedding(), settings(), tmp_path)
    assert same(stored(tmp_path, 6), expected[6][1])


@pytest.fixture
def handlers():
    """Ctrl-C and SIGTERM raise, as in the command line's processes; what they are set to."""

    def end(number, frame):
        raise SystemExit(128 + number)

    ours = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: end}
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield ours
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("written", ["save_embedding", "write_atomically"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_interrupt_does_not_disturb_the_save(
    tmp_path, make_model, make_examples, make_embedding, expected, monkeypatch, handlers, number, written
):
    write = getattr(run_module, written)

    def disturbed(*arguments):
        signal.raise_signal(number)
        write(*arguments)

    def on_step(progress):
        if progress.step == 3:
            monkeypatch.setattr(run_module, written, disturbed)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_training(make_model(), make_examples(), make_embedding(), settings(), tmp_path, on_step=on_step)
    assert same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3
    assert {n: signal.getsignal(n) for n in handlers} == handlers


def test_a_save_that_fails_gives_the_signals_back(
    tmp_path, make_model, make_examples, make_embedding, monkeypatch, handlers
):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(run_module, "save_embedding", full)
    with pytest.raises(OSError, match="no space left"):
        run_training(make_model(), make_examples(), make_embedding(), settings(), tmp_path, on_step=stop_after(3))
    assert {n: signal.getsignal(n) for n in handlers} == handlers


@pytest.mark.usefixtures("handlers")
def test_signals_set_by_others_than_python_are_left_alone(
    tmp_path, make_model, make_examples, make_embedding, expected, monkeypatch
):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    with pytest.raises(Interrupted):
        run_training(make_model(), make_examples(), make_embedding(), settings(), tmp_path, on_step=stop_after(3))
    assert same(stored(tmp_path, 3), expected[3][1])


def test_an_interrupt_in_another_thread_keeps_what_was_learnt(
    tmp_path, make_model, make_examples, make_embedding, expected
):
    arguments = make_model(), make_examples(), make_embedding(), settings(), tmp_path
    with ThreadPoolExecutor(1) as worker, pytest.raises(Interrupted):
        worker.submit(run_training, *arguments, on_step=stop_after(3)).result()
    assert same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3


def test_losses_that_cannot_be_written_do_not_cost_the_embedding(
    tmp_path, make_model, make_examples, make_embedding, expected
):
    (tmp_path / CSV).mkdir()
    with pytest.raises(OSError):
        run_training(make_model(), make_examples(), make_embedding(), settings(), tmp_path, on_step=stop_after(3))
    assert same(stored(tmp_path, 3), expected[3][1])


def test_a_training_error_says_what_is_kept_where(tmp_path, make_model, make_examples, make_embedding, expected):
    model = make_model(change=spoilt_from(4))
    with pytest.raises(TrainingError, match=r"loss of step 4 is nan.*embedding of step 3 is kept in") as caught:
        run_training(model, make_examples(), make_embedding(), settings(), tmp_path)
    assert str(tmp_path / "embeddings" / "cat-3.safetensors") in str(caught.value)
    assert same(stored(tmp_path, 3), expected[3][1])
    assert len(rows(tmp_path)) == 3


def test_other_errors_pass_as_they_are(tmp_path, make_model, make_examples, make_embedding):
    error = torch.OutOfMemoryError("CUDA out of memory")

    def on_step(progress):
        raise error

    with pytest.raises(torch.OutOfMemoryError) as caught:
        run_training(make_model(), make_examples(), make_embedding(), settings(), tmp_path, on_step=on_step)
    assert caught.value is error
    assert files(tmp_path / "embeddings") == ["cat-1.safetensors"]


def test_an_error_in_the_first_step_leaves_no_embedding(tmp_path, make_model, make_examples, make_embedding):
    model = make_model(change=spoilt_from(1))
    with pytest.raises(TrainingError, match="loss of step 1 is nan") as caught:
        run_training(model, make_examples(), make_embedding(), settings(), tmp_path)
    assert "kept" not in str(caught.value)
    assert not any("safetensors" in file for file in files(tmp_path))


def test_a_bad_schedule_is_an_error(tmp_path, make_model, make_examples, make_embedding):
    with pytest.raises(ValueError, match="No step is left"):
        run_training(make_model(), make_examples(), make_embedding(step=6), settings(6), tmp_path)


# Folders


def test_new_run_folders_are_never_used_twice(tmp_path):
    now = datetime(2026, 3, 4, 5, 6, 7)
    root = tmp_path / "out" / "textual_inversion"
    made = []
    for _ in range(12):
        folder = new_run_folder(root, "cat", now)
        assert folder.is_dir() and not list(folder.iterdir())
        (folder / "settings.json").touch()
        made.append(folder)
    assert [folder.name for folder in made] == ["2026-03-04_05-06-07"] + [
        f"2026-03-04_05-06-07_{n}" for n in range(2, 13)
    ]
    assert {folder.parent for folder in made} == {root / "cat"}
    assert new_run_folder(root, "dog", now) == root / "dog" / "2026-03-04_05-06-07"


def test_a_new_run_folder_is_called_after_the_time(tmp_path):
    before = datetime.now().replace(microsecond=0)
    folder = new_run_folder(tmp_path, "cat")
    assert before <= datetime.strptime(folder.name, "%Y-%m-%d_%H-%M-%S") <= datetime.now()


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
    assert _duration(seconds) == text
