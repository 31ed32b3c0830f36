"""Settings files, flags, and what the two make together."""

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cyclopts")
pytest.importorskip("msgspec")

from textinv_core.commands.output import sentence
from textinv_core.commands.settings_file import called, plans, read_file
from textinv_core.errors import UserError
from textinv_core.prompts import TEMPLATES
from textinv_core.training.presets import PRESETS
from textinv_core.training.preview import Preview
from textinv_core.training.settings import TrainSettings

LEAST = {"model": "m.safetensors", "name": "cat", "images": "cats"}


def plan(tables, flags=None):
    [made], are_jobs = plans({**LEAST, **tables}, flags or {})
    assert not are_jobs
    return made


def refused(tables, flags=None):
    with pytest.raises(ValueError) as error:
        plans({**LEAST, **tables}, flags or {})
    return sentence(error.value)


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
    listed = "--preset cannot be 'stile'; there are subject, style, fast, fast-style. Did you mean 'style'?"
    assert listed in refused({"preset": "stile"})


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


def test_previews_are_made_where_something_is_said_of_them():
    assert plan({}).preview is None
    assert plan({"preview": {}}).preview == Preview()
    made = plan({"preview": {"every": 50, "prompt": "[name] in snow"}}, {"preview": {"seed": 4}})
    assert made.preview == Preview(50, "[name] in snow", seed=4)
    (a, b), _ = plans({**LEAST, "job": [{"name": "a", "preview": {"cfg": 3}}, {"name": "b"}]}, {})
    assert (a.preview, b.preview) == (Preview(cfg=3.0), None)


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
        ({"shuffel": {}}, "a table [shuffel]", "Did you mean 'shuffle'?"),
        ({"trian": {"steps": 5}}, "a table [trian]", "There are [images], [train], [shuffle], [preview] and [[job]]."),
        ({"shuffel": "all"}, "'shuffel'", "Did you mean 'shuffle'?"),
        ({"shuffle": {"shuffle": "all"}}, "'shuffle' in [shuffle]", "Did you mean 'mode'?"),
        ({"shuffle": {"shuffle_per": "batch"}}, "'shuffle_per' in [shuffle]", "Did you mean 'per'?"),
        ({"images": {"images": "a"}}, "'images' in [images]", "Did you mean 'folder'?"),
        ({"train": {"learning-rate": "1"}}, "'learning-rate' in [train]", "Did you mean 'learning_rate'?"),
        ({"learning-rate": "1"}, "'learning-rate'", "It belongs into [train], as 'learning_rate'."),
        ({"shuffle": {"zzz": 1}}, "'zzz' in [shuffle]", "There are mode, per,"),
        ({"from_": "x"}, "'from_'", "Did you mean 'from'?"),
        ({"job": [{"nmae": "x"}]}, "'nmae'", "Did you mean 'name'?"),
        ({"preview": {"preview_every": 5}}, "'preview_every' in [preview]", "Did you mean 'every'?"),
        ({"train": {"preview_seed": 5}}, "'preview_seed' in [train]", "It belongs into [preview], as 'seed'."),
        ({"images": {"seed": 5}}, "'seed' in [images]", "It belongs into [train]."),
        ({"train": {"negative": "x"}}, "'negative' in [train]", "It belongs into [preview]."),
        ({"": {"name": "x"}}, "a table []", "There are [images]"),
        ({"": "x"}, "''", "There are model, preset,"),
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
        (
            {"shuffle": "all"},
            "'shuffle' is 'all', but 'shuffle' is a table: write [shuffle], and its settings, such as mode",
        ),
        ({"template": []}, "--template is empty"),
        ({"template": "custom"}, "cannot be 'custom'; there are subject, style, subject_filewords"),
        ({"train": {"clip_at": "0,1"}}, "If a decimal point was meant, write 0.1."),
        ({"train": {"learning_rate": "0,005"}}, "if a decimal point was meant, write '0.005'"),
        ({"train": {"learning_rate": "0,005:100, 0,001:500"}}, "write '0.005:100'"),
        ({"train": {"learning_rate": "0:100, 0:500"}}, "Nothing would be learnt"),
        ({"train": {"learning_rate": "0:500, 0.1"}}, "Nothing would be learnt"),  # 500 steps are the default
        ({"train": {"min_timestep": 500, "max_timestep": 400}}, "--min-timestep cannot be 500 with --max-timestep 400"),
        ({"train": {"loss_weighting": "min-snr"}}, "there are none, min_snr. Did you mean 'min_snr'?"),
        ({"vectors": 0, "init_text": " "}, "--init-text cannot be empty"),
        ({"images": {"folder": "a", "width": 100_000}}, "8 to 8192"),
        ({"job": [{"name": "a"}, {"name": "b", "train": {"steps": 0}}]}, "Job 2 ('b'): The training cannot start"),
        ({"job": [{"name": "a"}, {"name": "A"}]}, "Several jobs are called 'a'"),
        ({"name": "", "job": [{"from": "x"}]}, "Job 1 has no name"),
        ({"job": [{"name": "a"}, {"name": "b", "output": "c"}]}, "share one output folder; these have c, output"),
        ({"job": {"name": "x"}}, "[[job]]"),
        ({"train": {"steps": 0}}, "steps cannot be 0"),
        ({"train": {"learning_rate": "fast"}}, "'fast'"),
        ({"preview": {"seed": -1}}, "--preview-seed cannot be -1; it can be 0 to 18446744073709551615"),
        ({"preview": {"cfg": "7,5"}}, "If a decimal point was meant, write 7.5."),
        ({"preview": {"sampler": "euler_a"}}, "--preview-sampler cannot be 'euler_a'; there are dpmpp_2m, euler."),
        ({"preview": {"width": 60}}, "60x0 pixels cannot be generated: --preview-width and --preview-height"),
        ({"shuffle": {"mode": "wild"}}, "'wild'"),
        ({"shuffle": {"per": "word"}}, "Use one of sample, occurrence, batch"),
        ({"name": "my cat"}, "Try 'my_cat'"),
        ({"name": ""}, "no name"),
        ({"images": {"flip": True}}, "--images"),
        ({"images": {"folder": "a", "width": -8}}, "width cannot be -8"),
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
    with pytest.raises(UserError, match=r"no model to learn on\. Give one with --model, or as `model`"):
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
        (b"a = " + b"9" * 10_000, "as TOML"),
    ],
)
def test_a_file_that_cannot_be_settings_is_refused(tmp_path, data, words):
    file = tmp_path / "a.toml"
    file.write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_file(file)


def test_a_byte_order_mark_is_no_key(tmp_path):
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbfname = 'cat'")
    assert read_file(file) == {"name": "cat"}


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"settings file '.*a\.toml' cannot be read: No such file"):
        read_file(tmp_path / "a.toml")
    with pytest.raises(UserError, match=r"settings file '.*' cannot be read: Is a directory"):
        read_file(tmp_path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no such files")
def test_a_file_without_end_is_refused(tmp_path):
    with pytest.raises(UserError, match="1 MiB"):
        read_file(Path("/dev/zero"))
    os.mkfifo(tmp_path / "pipe")  # as `textinv train <(cat a.toml)` has
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["name = 'cat'"])
    writer.start()
    assert read_file(tmp_path / "pipe") == {"name": "cat"}
    writer.join()


BEFORE = ["", "a = 1\n", 'a = """\n"\n"""\n', "a = '''\n'\n'''\n", "# don't\n", "[a]\nb = {"]
BEFORE += ['a = {b = """c"""", ', "a = {b = '''c''''', "]


@pytest.mark.parametrize("key", ["a" + ".a" * 50_000, "'a'" + ' . "\\"" ' * 50_000, "[x" + ". x" * 50_000 + "]#"])
@pytest.mark.parametrize("before", BEFORE)
def test_a_key_of_many_parts_is_refused(tmp_path, key, before):
    file = tmp_path / "a.toml"
    file.write_text(f"{before}{key} = 1")
    with pytest.raises(UserError, match="a key of more than 32 parts"):
        read_file(file)


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "0b" + "1" * 20_000, "9" * 500, "[0x" + "f" * 5000 + "]"])
def test_a_number_of_many_digits_is_refused(tmp_path, number):
    file = tmp_path / "a.toml"
    file.write_text(f"train.steps = {number}")
    with pytest.raises(UserError, match="a number of more than 99 digits"):
        read_file(file)


def test_lines_without_end_are_refused_at_once(tmp_path):
    (tmp_path / "a.toml").write_text("\n" * 1_000_000 + "a")  # an hour, where each line is searched to the file's end
    with pytest.raises(UserError, match="cannot be read as TOML"):
        read_file(tmp_path / "a.toml")


@pytest.mark.parametrize("text", ["x" + ".x" * 50, "....... " * 50, "don't '" + ".x" * 50])
def test_texts_and_comments_may_have_any_dots(tmp_path, text):
    file = tmp_path / "a.toml"
    file.write_text(f'a = "{text}" # {text}\nb = """\n\\"{text}\n"" """\nc = \'\'\'{text} \'\'\'')
    assert read_file(file)["a"] == text


def test_a_bad_value_of_any_depth_is_named():
    deep = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert "'steps' in [train] is {'a': {" in refused({"train": {"steps": deep}})


def test_a_rate_of_zero_may_be_a_pause():
    assert plan({"train": {"learning_rate": "0.1:10, 0:20, 0.1"}}).train.learning_rate == "0.1:10, 0:20, 0.1"


@pytest.mark.parametrize(
    ("setting", "tables", "flags", "name"),
    [
        ("steps", {}, {}, "--steps"),
        ("steps", {"train": {"steps": 5}}, {}, "steps in [train]"),
        ("steps", {"train": {"steps": 5}}, {"train": {"steps": 6}}, "--steps"),
        ("steps", {"job": [{"train": {"steps": 5}}]}, {}, "steps in [train]"),
        ("folder", {"images": "cats"}, {}, "folder in [images]"),
        ("folder", {"images": "cats"}, {"images": {"folder": "dogs"}}, "--images"),
        ("mode", {"shuffle": {"mode": "all"}}, {}, "mode in [shuffle]"),
        ("mode", {}, {"shuffle": {"mode": "all"}}, "--shuffle"),
        ("model_config", {"model_config": "a"}, {}, "model_config"),
        ("preview_seed", {"train": {"seed": 5}}, {}, "--preview-seed"),
        ("preview_seed", {"preview": {"seed": 5}}, {}, "seed in [preview]"),
        ("preview_seed", {"preview": {"seed": 5}}, {"preview": {"seed": 6}}, "--preview-seed"),
    ],
)
def test_a_setting_is_called_what_the_person_called_it(setting, tables, flags, name):
    assert called(setting, tables, flags) == name
