"""Settings files, flags, and what the two make together."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cyclopts")
pytest.importorskip("msgspec")

from textinv_core.commands.settings_file import plans, read_file
from textinv_core.errors import UserError
from textinv_core.prompts import TEMPLATES
from textinv_core.training.presets import PRESETS
from textinv_core.training.settings import TrainSettings

LEAST = {"model": "m.safetensors", "name": "cat", "images": "cats"}


def plan(tables, flags=None):
    [made], are_jobs = plans({**LEAST, **tables}, flags or {})
    assert not are_jobs
    return made


def refused(tables, flags=None):
    with pytest.raises(ValueError) as error:
        plans({**LEAST, **tables}, flags or {})
    return str(error.value)


def test_the_least_takes_every_default_of_the_core():
    made = plan({})
    assert made.train == TrainSettings(TEMPLATES["subject"])
    assert (made.model, made.name, made.images.folder) == (Path("m.safetensors"), "cat", Path("cats"))
    assert (made.images.width, made.shuffle.mode, made.vectors) == (0, "off", 2)


def test_the_defaults_are_the_preset_for_a_subject():
    assert replace(plan({"preset": "subject"}), preset="") == plan({})


def test_flags_win_over_the_file_setting_by_setting():
    file = {"vectors": 3, "train": {"steps": 10, "seed": 4}, "images": {"folder": "a", "flip": True}}
    made = plan(file, {"vectors": 5, "train": {"steps": 20}, "images": {"flip": False}})
    assert (made.vectors, made.train.steps, made.train.seed) == (5, 20, 4)
    assert (made.images.folder, made.images.flip) == (Path("a"), False)


def test_a_preset_lies_under_everything_else():
    tables = {"preset": "style", "vectors": 2, "train": {"batch_size": 3}}
    made = plan(tables, {"train": {"learning_rate": "0.5"}})
    assert made.train.template == TEMPLATES["style"]
    assert (made.vectors, made.train.batch_size, made.train.learning_rate) == (2, 3, "0.5")
    assert made.train.steps == PRESETS["style"]["train"]["steps"]
    assert "no preset 'stile'; there are subject and style" in refused({"preset": "stile"})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_made_of_settings(name):
    made = plan({"preset": name})
    assert {key: getattr(made.train, key) for key in PRESETS[name]["train"]} == PRESETS[name]["train"]


def test_jobs_win_over_what_is_common_and_flags_over_jobs():
    tables = {"train": {"steps": 10}, "job": [{"name": "a", "train": {"seed": 1}}, {"name": "b", "images": "dogs"}]}
    (a, b), are_jobs = plans({**LEAST, **tables}, {"train": {"batch_size": 2}})
    assert are_jobs
    assert (a.name, a.train.steps, a.train.seed, a.train.batch_size, a.images.folder) == ("a", 10, 1, 2, Path("cats"))
    assert (b.name, b.train.steps, b.train.seed, b.train.batch_size, b.images.folder) == ("b", 10, 0, 2, Path("dogs"))


def test_a_template_is_a_name_or_lines():
    assert plan({"template": "style"}).train.template == TEMPLATES["style"]
    assert plan({"template": "a [name]"}).train.template == ("a [name]",)
    assert plan({"template": ["a [name]", "the [name]"]}).train.template == ("a [name]", "the [name]")
    assert "'stile'" in refused({"template": "stile"})
    assert "does not say [name]" in refused({"template": ["a [name]", "no"]})


def test_other_embeddings_are_files():
    assert plan({}).embedding == ()
    assert plan({"embedding": "dog.pt"}).embedding == (Path("dog.pt"),)
    made = plan({"embedding": ["dog.pt"]}, {"embedding": (Path("a.pt"), Path("b.pt"))})
    assert made.embedding == (Path("a.pt"), Path("b.pt"))


def test_a_rate_may_be_written_as_a_number():
    assert plan({"train": {"learning_rate": 0.001}}).train.learning_rate == "0.001"


@pytest.mark.parametrize(
    ("tables", "key", "advice"),
    [
        ({"nmae": "x"}, "'nmae'", "Did you mean 'name'?"),
        ({"train": {"step": 5}}, "'step' in [train]", "Did you mean 'steps'?"),
        ({"steps": 5}, "'steps'", "It belongs into [train]."),
        ({"train": {"vectors": 5}}, "'vectors' in [train]", "to the top"),
        ({"batchsize": 5}, "'batchsize'", "Did you mean 'batch_size' in [train]?"),
        ({"shuffel": {}}, "'shuffel'", "Did you mean 'shuffle'?"),
        ({"shuffle": {"zzz": 1}}, "'zzz' in [shuffle]", "There are mode, per,"),
        ({"from_": "x"}, "'from_'", "Did you mean 'from'?"),
        ({"job": [{"nmae": "x"}]}, "'nmae'", "Did you mean 'name'?"),
        ({"": {"name": "x"}}, "''", "There are model, preset,"),
    ],
)
def test_a_key_that_means_nothing_is_named_with_the_nearest_that_does(tables, key, advice):
    message = refused(tables)
    assert key in message and advice in message


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"train": {"steps": "many"}}, "'steps' in [train] is 'many'; it must be a whole number"),
        ({"train": {"steps": True}}, "is True; it must be a whole number"),
        ({"train": {"steps": 1.5}}, "is 1.5; it must be a whole number"),
        ({"name": 7}, "'name' is 7; it must be a text"),
        ({"images": {"folder": "a", "flip": "yes"}}, "'flip' in [images] is 'yes'; it must be true or false"),
        ({"from": 7}, "'from' is 7; it must be a path"),
        ({"template": [1]}, "'template' is [1]; it must be a text or a list of texts"),
        ({"train": 5}, "write [train]"),
        ({"job": {"name": "x"}}, "[[job]]"),
        ({"train": {"steps": 0}}, "steps cannot be 0"),
        ({"train": {"learning_rate": "fast"}}, "'fast'"),
        ({"shuffle": {"mode": "wild"}}, "'wild'"),
        ({"shuffle": {"per": "word"}}, "Use one of sample, occurrence, batch"),
        ({"name": "my cat"}, "Try 'my_cat'"),
        ({"name": ""}, "no name"),
        ({"images": {"flip": True}}, "--images"),
        ({"images": {"folder": "a", "width": -8}}, "-8x0"),
        (
            {"images": {"folder": "a", "captions": "txt"}},
            "captions cannot be 'txt'; there are auto, sidecar, filename, none",
        ),
        ({"images": {"folder": "a", "resize": "zoom"}}, "resize cannot be 'zoom'; there are crop, squash, keep"),
        ({"images": {"folder": "a", "filename_word_regex": "[a"}}, "filename word regex"),
        ({"images": {"folder": "a", "filename_word_regex": "(a)(b)"}}, "2 groups"),
        ({"images": {"folder": "a", "filename_word_regex": "a{99999999999}"}}, "filename word regex"),
        ({"train": {"seed": -1}}, "seed cannot be -1"),
        ({"vectors": 76}, "76"),
        ({"precision": "fp8"}, "'fp8'"),
        ({"template": "none", "images": {"folder": "a", "captions": "none"}}, "[filewords]"),
    ],
)
def test_a_bad_value_is_named(tables, words):
    assert words in refused(tables)


def test_a_model_there_must_be():
    with pytest.raises(UserError, match="--model"):
        plans({"name": "cat", "images": "cats"}, {})


def test_clip_at_may_be_whole():
    assert plan({"train": {"clip_at": 1}}).train.clip_at == 1.0


def test_to_go_on_needs_no_name():
    assert plan({"name": "", "from": "cat-5.pt"}).from_ == Path("cat-5.pt")


def test_a_file_is_read_as_toml(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('name = "käse"\n[train]\nsteps = 3\n', encoding="utf-8")
    assert read_file(file) == {"name": "käse", "train": {"steps": 3}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"name = ", "as TOML"),
        (b"name = '\xff'", "as TOML"),
        (b"a = " + b"[" * 100_000, "as TOML"),
        (b"#" * 1024**2 + b"#", "1 MiB"),
    ],
)
def test_a_file_that_cannot_be_settings_is_refused(tmp_path, data, words):
    file = tmp_path / "a.toml"
    file.write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_file(file)


def test_a_bad_value_of_any_depth_is_named():
    deep = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert "'steps' in [train] is {'a': {" in refused({"train": {"steps": deep}})
