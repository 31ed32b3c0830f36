"""A training from pictures to what was learnt, as the node and the command run it."""

import json
import logging
import re
import weakref
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fakes import FakeHost, FakeModel, Interrupted, fake_embedding, fake_pictures, same, train
from textinv_core import load_embedding
from textinv_core.embedding import Embedding
from textinv_core.errors import UserError
from textinv_core.hosts.base import Sampling
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.evaluation import Evaluated, split
from textinv_core.training.examples import encoded_examples
from textinv_core.training.folder import RunFolder
from textinv_core.training.learn import Encoded, Started, learn
from textinv_core.training.parallel import Processes
from textinv_core.training.preview import Preview
from textinv_core.training.previews import Previewed
from textinv_core.training.run import Ended, Saved
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Step, Training


def settings(steps=3, template=("[name], [filewords]",), **more):
    told = {"steps": steps, "gradient_accumulation": 1, "save_every": 2, "evaluate_every": 0, **more}
    return TrainSettings(template, **told)


def events(tmp_path, host=None, pictures=None, embedding=None, told=None, **more):
    """All that is told behind the pictures being encoded."""
    pictures = fake_pictures() if pictures is None else pictures
    learning = learn(host or FakeHost(), pictures, embedding or fake_embedding(), told or settings(), tmp_path, **more)
    return [event for event in learning if not isinstance(event, Encoded)]


def started_of(learning):
    return next(event for event in learning if isinstance(event, Started))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# From beginning to end


def test_what_happens_in_order(tmp_path):
    host = FakeHost()
    told = events(tmp_path, host, preview=Preview())
    assert [type(event) for event in told] == [Started, Step, Step, Saved, Step, Previewed, Ended]
    # Sampling comes when the host has its model back.
    assert host.did[:3] == ["encode", "load", "unload"] and host.did[3].startswith("sample") and len(host.did) == 4


def test_pictures_are_encoded_one_after_another_before_anything_is_written(tmp_path):
    """So that there is something to see, and somewhere to stop."""
    host = FakeHost()
    with closing(learn(host, fake_pictures(3), fake_embedding(), settings(), tmp_path)) as told:
        assert [next(told), next(told)] == [Encoded(1, 3), Encoded(2, 3)]
        assert host.did == ["encode"]
    [*first] = learn(host, fake_pictures(3), fake_embedding(), settings(), tmp_path)
    assert first[:3] == [Encoded(1, 3), Encoded(2, 3), Encoded(3, 3)] and isinstance(first[3], Started)
    assert str(first[1]) == "2 of 3 pictures encoded"


def test_a_changed_rate_encodes_nothing_again(tmp_path):
    host = FakeHost()
    events(tmp_path, host)
    host.did.clear()
    events(tmp_path, host, told=settings(learning_rate="0.1"))
    assert host.did == ["load", "unload"]


def test_it_learns_what_the_training_alone_would(tmp_path):
    pictures = [*fake_pictures(2), *fake_pictures(2, 24, 16)]
    pictures[1] = replace(pictures[1], mask=torch.linspace(0, 1, 24).expand(16, 24))
    told = settings(5, batch_size=2, seed=4)
    shuffle = ShuffleConfig("all", "occurrence")
    host = FakeHost()
    examples = encoded_examples(host, pictures)
    assert [example.name for example in examples] == ["0", "1", "0", "1"]
    *_, last = train(FakeModel(), examples, fake_embedding(), told, shuffle)
    *_, ended = events(tmp_path, host, pictures, told=told, shuffle=shuffle)
    assert same(ended.learnt, last.learnt) and len(ended.losses) == 5
    assert same(load_embedding(ended.path), last.learnt)


def test_the_embedding_says_what_it_was_trained_on(tmp_path):
    before = fake_embedding(metadata={"textinv.sd_checkpoint": "an earlier model", "modelspec.author": "me"})
    started, *_, ended = events(tmp_path, FakeHost(), fake_pictures(2, 19, 30), before)
    facts = {"modelspec.author": "me", "modelspec.resolution": "28x16", "textinv.base_model": FakeHost().fingerprint()}
    assert dict(ended.learnt.metadata) == dict(started.embedding.metadata) == facts
    assert started.pictures == 2 and started.embedding.step == 0


def test_the_folder_says_what_decided_the_result(tmp_path):
    told = settings(2, learning_rate="0.01:5, 0.001", gradient_clipping="norm", seed=2**53, held_out=1)
    _, [held_out] = split(4, told)
    shuffle = ShuffleConfig("on", "batch", progressive_words=True)
    started, *_ = events(
        tmp_path, pictures=fake_pictures(4), embedding=fake_embedding(3, 2), told=told, shuffle=shuffle
    )
    assert started.folder.path.parent == tmp_path / "cat" and started.pictures == 3
    written = json.loads((started.folder.path / "settings.json").read_text())
    digests = written.pop("digests")
    assert {*digests} == {"embedding", "pictures", "captions", "masks", *FakeHost().identities()}
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests.values())
    assert re.fullmatch("[0-9a-f]{32}", written.pop("identity"))
    result = written.pop("result")
    assert "hardly moved" in result["text"] and result["is_read"] is True
    assert written == {
        "template": ["[name], [filewords]"],
        "steps": 2,
        "learning_rate": "0.01:5, 0.001",
        "optimizer": "adamw",
        "batch_size": 1,
        "gradient_accumulation": 1,
        "seed": 2**53,
        "gradient_clipping": "norm",
        "clip_at": 0.1,
        "min_timestep": 0,
        "max_timestep": 1000,
        "loss_weighting": "none",
        "gradient_checkpointing": "auto",
        "save_every": 2,
        "evaluate_every": 0,
        "held_out": 1,
        "early_stop": "off",
        "patience": 3,
        "keep": 0,
        "preview": None,
        "shuffle": {"mode": "all", "per": "batch", "progressive_words": True, "unlock_every": 2000},
        "embedding": "cat",
        "pictures": 4,
        "held_out_pictures": [str(held_out)],
        "vectors": {"clip_l": [3, 4], "clip_g": [2, 6]},
        "resume": "auto",
        "ended": {"step": 2},
    }


def test_processes_but_the_first_leave_nothing(tmp_path):
    class Other(Processes):
        def gather(self, rows):
            return torch.cat([rows, rows])

        def share(self, value):
            return value

    told = settings(4, gradient_accumulation=2)
    started, *_, ended = events(tmp_path, told=told, processes=Other(1, 2), preview=Preview())
    assert started.folder is None and ended.path is None and ended.learnt.step == 4
    assert not list(tmp_path.iterdir())


# What keeps it from starting


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embedding": fake_embedding(step=3)}, "No step is left"),
        ({"told": settings(learning_rate="0.1:2"), "embedding": fake_embedding(step=2)}, "No step is left"),
        ({"told": settings(template=("a picture",))}, "Nothing would be learnt"),
        ({"told": settings(learning_rate="fast")}, "'fast'"),
        ({"embedding": Embedding("cat", {"clip_l": torch.ones(1, 4)}, 0)}, "does not fit this fake model"),
        ({"pictures": []}, "no pictures"),
        ({"pictures": fake_pictures(1, 3, 9)}, "9x3 pixels is too small"),
        ({"processes": Processes(0, 2)}, "2 processes cannot share 1 batches"),
        ({"preview": Preview(sampler="dmp")}, "preview_sampler cannot be 'dmp'"),
        ({"preview": Preview(width=66)}, "multiples of 4"),
    ],
)
def test_what_cannot_start_is_refused_before_any_work(tmp_path, change, words):
    host = FakeHost()
    with pytest.raises(UserError, match=words):
        events(tmp_path, host, **change)
    assert host.did == [] and not list(tmp_path.iterdir())


# Whether anything was learnt


def test_captions_that_are_missing_are_told_of_once(tmp_path, caplog):
    without = [replace(picture, caption="") for picture in fake_pictures()]
    for _ in range(2):  # the second time it is done already
        events(tmp_path, pictures=without)
    events(tmp_path, pictures=[fake_pictures()[0], *without[1:]], embedding=replace(fake_embedding(), name="dog"))
    events(
        tmp_path,
        pictures=without,
        told=settings(template=("[name]",)),
        embedding=replace(fake_embedding(), name="bird"),
    )
    assert [message for message in caplog.messages if "[filewords]" in message] == [
        f"textinv: none of the {len(without)} pictures of cat has a caption, so [filewords] in the template stands for "
        "nothing."
    ]


def test_the_result_is_judged_in_the_log_the_folder_and_at_the_end(tmp_path, caplog):
    caplog.set_level(logging.INFO, "textinv")
    started, *_, ended = events(tmp_path, told=settings(4, learning_rate="0.5", evaluate_every=2))
    learnt, start = ended.learnt.vectors["clip_l"], started.embedding.vectors["clip_l"]
    moved = ended.verdict.vectors["clip_l"]
    assert moved.distance == pytest.approx(float((learnt - start).norm(dim=1).mean()))
    (_, first), *_, (step, last) = started.folder.fixed_losses()
    assert step == 4 and ended.verdict.fixed_loss == pytest.approx((first, last), rel=1e-4)
    assert ended.verdict.is_read
    assert f"cat, step 4: {ended.verdict.text}" in caplog.text
    assert started.folder.settings()["result"] == json.loads(json.dumps(ended.verdict.facts()))
    # And once more when the run is asked for again; not of an earlier step.
    assert events(tmp_path, told=settings(4, learning_rate="0.5", evaluate_every=2))[-1].verdict == ended.verdict
    assert events(tmp_path, told=settings(2, learning_rate="0.5", evaluate_every=2))[-1].verdict is None


@pytest.mark.parametrize(
    ("error", "said", "is_read"),
    [
        (Interrupted(), "looking at the result was cancelled", None),
        (RuntimeError("no kernel"), "looking at the result failed", None),
        (UserError("it is no embedding"), "cannot be read back: it is no embedding", False),
        (OSError("no room"), "could not be tried: no room", None),
    ],
)
def test_a_result_that_cannot_be_looked_at_is_kept(tmp_path, error, said, is_read, caplog):
    class Host(FakeHost):
        def _encoded_from(self, file, embedding):
            raise error

    *_, ended = events(tmp_path, Host())
    assert ended.learnt.step == 3 and said in caplog.text
    assert (ended.verdict and ended.verdict.is_read) == is_read


# The preview


def test_a_preview_shows_what_was_learnt(tmp_path):
    host = FakeHost()
    told = Preview(0, "two [name]", "snow", "dpmpp_2m", "karras", 7, 3.5, 11)
    started, *_, previewed, ended = events(tmp_path, host, told=settings(seed=9), preview=told)
    assert previewed.step == 3 and previewed.pictures.shape == (1, 64, 64, 3)
    assert host.did[-1] == "sample ['two embedding:cat'] of [3, 4, 6] with [3], seeds [11], 7 steps"
    assert host.sampled == Sampling(7, 3.5, "snow", "dpmpp_2m", "karras")
    assert previewed.path == started.folder.path / "images" / "cat-3.png"
    with Image.open(previewed.path) as picture:
        assert picture.text["parameters"] == (
            "two embedding:cat\nNegative prompt: snow\n"
            "Steps: 7, Sampler: dpmpp_2m, CFG scale: 3.5, Seed: 11, Size: 64x64"
        )
    in_picture = load_embedding(started.folder.path / "image_embeddings" / "cat-3.png")
    assert same(in_picture, ended.learnt)
    events(tmp_path, host, preview=Preview())
    assert host.did[-1].startswith("sample ['embedding:cat, picture-0']")


def test_a_preview_has_the_memory_of_the_training(tmp_path, monkeypatch):
    trainings = []

    class Watched(Training):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            trainings.append(weakref.ref(self))

    class Host(FakeHost):
        def sample(self, *arguments):
            self.did.append("gone" if trainings[0]() is None else "there")
            return super().sample(*arguments)

    monkeypatch.setattr("textinv_core.training.learn.Training", Watched)
    host = Host()
    events(tmp_path, host, preview=Preview())
    assert host.did[-2] == "gone"


def test_no_preview_is_made_unasked(tmp_path):
    host = FakeHost()
    told = events(tmp_path, host)
    assert Previewed not in map(type, told) and len(host.did) == 3


@pytest.mark.parametrize(
    "error", [RuntimeError("boom"), torch.OutOfMemoryError("short"), Interrupted(), OSError("full")]
)
def test_a_preview_that_fails_or_is_cancelled_costs_nothing_else(tmp_path, error, caplog):
    *rest, ended = events(tmp_path, FakeHost(sampling=error), preview=Preview())
    assert isinstance(ended, Ended) and ended.learnt.step == 3 and len(ended.losses) == 3
    assert same(load_embedding(ended.path), ended.learnt)
    assert Previewed not in map(type, rest)
    assert "what was learnt is kept" in caplog.text


def test_a_preview_that_cannot_be_written_is_shown(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("textinv_core.training.folder.save_picture", full)
    *_, previewed, ended = events(tmp_path, preview=Preview())
    assert isinstance(previewed, Previewed) and isinstance(ended, Ended) and previewed.path is None


@pytest.mark.parametrize(
    ("size", "cells"), [((), [3, 4, 6]), ((32, 0), [3, 4, 8]), ((0, 32), [3, 8, 6]), ((12, 20), [3, 5, 3])]
)
def test_a_preview_is_as_large_as_it_was_told_or_as_the_first_picture(tmp_path, size, cells):
    host = FakeHost()
    events(tmp_path, host, preview=Preview(**dict(zip(("width", "height"), size, strict=False))))
    assert f"of {cells} with" in host.did[-1]


def test_texts_for_its_file_are_taken_as_they_are(tmp_path):
    for texts in ({"prompt": "{}", "workflow": "[]"}, {}):
        *_, previewed, _ = events(tmp_path, told=settings(resume="fresh"), preview=Preview(), texts=texts)
        with Image.open(previewed.path) as picture:
            assert picture.text == texts


def test_the_file_has_the_pixels_that_the_host_would_save(tmp_path):
    sampled = torch.rand(1, 64, 64, 3)
    *_, previewed, _ = events(tmp_path, FakeHost(sampling=sampled), preview=Preview())
    # As in ComfyUI's SaveImage.
    theirs = np.clip(255.0 * sampled[0].numpy(), 0, 255).astype(np.uint8)
    with Image.open(previewed.path) as picture:
        assert np.array_equal(np.asarray(picture), theirs)


def test_a_picture_that_cannot_hold_the_embedding_is_kept_without(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("textinv_core.formats.image_embedding.MAX_PIXELS", 10)
    started, *_, previewed, _ = events(tmp_path, preview=Preview())
    assert previewed.path.is_file() and not [*started.folder.path.glob("image_embeddings/*")]
    assert "64 x 64 cannot hold the embedding" in caplog.text


class Strict(FakeHost):
    """Its models are good once: inside the `trainable` they come from. Generating draws from the random state."""

    def _load(self, latent, batch_size, stack):
        super()._load(latent, batch_size, stack)
        self.model = model = FakeModel()
        stack.callback(setattr, model, "change", None)
        return model

    def sample(self, *arguments):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return super().sample(*arguments)


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": "on"}, {"gradient_accumulation": 2, "batch_size": 2}])
def test_previews_on_the_way_change_nothing_that_is_learnt(tmp_path, more):
    told, shuffle, host = settings(5, **more), ShuffleConfig("all"), Strict()
    before = torch.get_rng_state()
    with_previews = events(tmp_path / "with", host, told=told, shuffle=shuffle, preview=Preview(2))
    without = events(tmp_path / "without", told=told, shuffle=shuffle)
    assert same(with_previews[-1].learnt, without[-1].learnt) and with_previews[-1].losses == without[-1].losses
    assert torch.equal(torch.get_rng_state(), before)
    kinds = [type(event) for event in with_previews]
    assert kinds == [Started, Step, Step, Saved, Previewed, Step, Step, Saved, Previewed, Step, Previewed, Ended]
    assert [event.step for event in with_previews if isinstance(event, Previewed)] == [2, 4, 5]
    # Each with what was learnt by its step, and while the host had its model back.
    sampled = [place for place, what in enumerate(host.did) if what.startswith("sample")]
    assert [host.did[place - 1] for place in sampled] == ["unload"] * 3 and host.did.count("load") == 3
    assert [f"with [{step}]" in host.did[place] for place, step in zip(sampled, (2, 4, 5), strict=True)] == [True] * 3
    for step in (2, 4):
        copy = load_embedding(with_previews[0].folder.copy("cat", step))
        assert same(load_embedding(with_previews[0].folder.path / f"image_embeddings/cat-{step}.png"), copy)
    assert host.model.checkpointed == (told.gradient_checkpointing == "on")


def test_a_run_that_ends_early_has_its_last_preview_once_and_its_best_copy(tmp_path):
    """Whether it ends is only known when a preview of that step has been made."""
    told = settings(30, learning_rate="0.1", evaluate_every=2, early_stop="patience", patience=2, keep=1)
    events_of = events(tmp_path, told=told, preview=Preview(2))
    best = min((event for event in events_of if isinstance(event, Evaluated)), key=lambda event: event.loss)
    assert (best.step, events_of[-1].learnt.step) == (6, 10)
    assert [event.step for event in events_of if isinstance(event, Previewed)] == [2, 4, 6, 8, 10]
    copies = (events_of[0].folder.path / "embeddings").iterdir()
    assert {path.name for path in copies} == {"cat-6.safetensors", "cat-10.safetensors"}


def test_a_preview_on_the_way_that_fails_costs_nothing_else(tmp_path, caplog):
    host = Strict(sampling=torch.OutOfMemoryError("short"))
    *_, ended = events(tmp_path, host, told=settings(5), preview=Preview(2))
    assert ended.learnt.step == 5 and caplog.text.count("what was learnt is kept") == 3
    assert "the preview of step 2 failed" in caplog.text


def test_previews_that_cannot_be_kept_are_shown_and_that_is_said_once(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "save_preview", full)
    told = events(tmp_path, told=settings(5), preview=Preview(2))
    assert [(event.step, event.path) for event in told if isinstance(event, Previewed)] == [
        (2, None),
        (4, None),
        (5, None),
    ]
    assert caplog.text.count("No space left") == 1 and "not all of the preview of step 2 could be kept" in caplog.text


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt])
def test_an_interrupt_in_a_preview_on_the_way_ends_the_run_and_loses_nothing(tmp_path, error):
    told = settings(5)
    *_, unbroken = events(tmp_path / "unbroken", told=told)
    host = Strict(sampling=error())
    with pytest.raises(error):
        events(tmp_path, host, told=told, preview=Preview(2))
    assert host.did[-2:] == ["unload", "sample ['embedding:cat, picture-0'] of [3, 4, 6] with [2], seeds [0], 20 steps"]
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    [folder] = (tmp_path / "cat").iterdir()
    assert load_embedding(folder / "embeddings" / "cat-2.safetensors").step == 2
    # What was missed then is made when the run goes on.
    host = Strict()
    gone_on = events(tmp_path, host, told=told, preview=Preview(2))
    assert [event.step for event in gone_on if isinstance(event, Previewed)] == [2, 4, 5]
    assert [event.step for event in gone_on if isinstance(event, Step)] == [3, 4, 5]
    assert same(gone_on[-1].learnt, unbroken.learnt)


def test_at_the_end_ctrl_c_costs_the_preview_and_what_ends_the_process_does_not(tmp_path, caplog):
    *rest, ended = events(tmp_path, FakeHost(sampling=KeyboardInterrupt()), preview=Preview())
    assert isinstance(ended, Ended) and Previewed not in map(type, rest) and "was cancelled" in caplog.text

    class Signalled(KeyboardInterrupt): ...

    with pytest.raises(Signalled):
        events(tmp_path, FakeHost(sampling=Signalled()), told=settings(seed=2), preview=Preview())


def test_previews_of_steps_done_before_are_not_made_again(tmp_path):
    told = settings(4)
    events(tmp_path, told=told, preview=Preview(2))
    gone_on = events(tmp_path, told=settings(7), preview=Preview(2))
    assert [event.step for event in gone_on if isinstance(event, Previewed)] == [6, 7]
    other = Preview(2, "a [name]")
    for preview, made in ((Preview(2), []), (Preview(3), []), (other, [7]), (other, [])):
        host = FakeHost()
        again = events(tmp_path, host, told=settings(7), preview=preview)
        assert [event.step for event in again if isinstance(event, Previewed)] == made
        assert "load" not in host.did and isinstance(again[-1], Ended)
    assert sorted(again[0].folder.previews()) == [2, 4, 6, 7]


def test_a_preview_on_the_way_costs_no_work_if_it_is_killed(tmp_path):
    """All of its step is kept before, the exact state too."""
    kept = []

    class Looking(FakeHost):
        def sample(self, *arguments):
            [folder] = RunFolder.all(tmp_path, "cat")
            kept.append((folder.newest_state_step(), [step for step, _ in folder.fixed_losses()]))
            return super().sample(*arguments)

    events(tmp_path, Looking(), told=settings(5, evaluate_every=2), preview=Preview(2))
    assert kept == [(2, [0, 2]), (4, [0, 2, 4]), (5, [0, 2, 4, 5])]


@pytest.mark.parametrize("error", [Interrupted(), RuntimeError("of itself")])
def test_another_preview_of_a_run_that_has_ended_is_only_told_of_once_it_is_there(tmp_path, caplog, error):
    """Else the picture from before would pass for it."""
    folder = events(tmp_path, told=settings(3), preview=Preview(steps=4))[0].folder
    before, other = folder.previews()[3].read_bytes(), Preview(steps=9, negative="no [name]")
    first, *_ = events(tmp_path, FakeHost(sampling=error), told=settings(3), preview=other)
    assert first.folder == folder and folder.previews()[3].read_bytes() == before
    assert folder.settings()["preview"]["steps"] == 4 and "before" not in folder.settings()
    assert "The picture of step 3 is one from before" in caplog.text
    host = FakeHost()
    made = events(tmp_path, host, told=settings(3), preview=other)
    assert [event.step for event in made if isinstance(event, Previewed)] == [3] and "9 steps" in host.did[-1]
    assert b"no embedding:cat" in folder.previews()[3].read_bytes()
    told = folder.settings()
    assert told["preview"]["steps"] == 9 and told["ended"] == {"step": 3}
    [was] = told["before"]
    assert was["until_step"] == 3 and was["preview"]["steps"] == 4
    assert not any(isinstance(event, Previewed) for event in events(tmp_path, told=settings(3), preview=other))


def test_frames_of_a_video_are_previewed(tmp_path):
    host = FakeHost(sampling=torch.rand(5, 8, 8, 3))
    *_, previewed, _ = events(tmp_path, host, preview=Preview())
    assert previewed.pictures.shape == (5, 8, 8, 3)


# Stops


def test_the_host_has_its_model_back_when_nobody_listens_any_more(tmp_path):
    host = FakeHost()
    flags = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    with torch.inference_mode():
        within = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        told = learn(host, fake_pictures(), fake_embedding(), settings(), tmp_path)
        with closing(told):
            started, step = started_of(told), next(told)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == within
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == flags
    assert host.did[-1] == "unload"
    assert same(load_embedding(started.folder.newest()), step.learnt)


def test_an_interrupt_keeps_what_was_learnt(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "textinv")
    model = FakeModel(is_interrupted=lambda calls: calls == 2)
    host = FakeHost(model)
    told = learn(host, fake_pictures(), fake_embedding(), settings(), tmp_path, preview=Preview())
    started, *_ = started_of(told), next(told), next(told), next(told)
    with pytest.raises(Interrupted):
        next(told)
    assert host.did == ["encode", "load", "unload"]  # and no preview
    assert load_embedding(started.folder.newest()).step == 2
    assert "stopped at step 2" in caplog.text


def test_the_random_state_is_as_it_was(tmp_path):
    class Seeding(FakeModel):
        def predict(self, *arguments):
            torch.manual_seed(1)
            return super().predict(*arguments)

    before = torch.get_rng_state()
    events(tmp_path, FakeHost(Seeding()))
    assert torch.equal(torch.get_rng_state(), before)
