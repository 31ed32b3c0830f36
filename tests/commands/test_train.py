"""`textinv train`: what it leaves, how it is stopped and goes on, and many processes."""

import json
import shlex
import signal
import sys
import time
import weakref

import pytest
import torch

pytest.importorskip("cyclopts")
pytest.importorskip("diffusers")

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.commands import inputs
from textinv_core.commands.inputs import load_model
from textinv_core.commands.process import ONE_PRESS
from textinv_core.commands.trained import TRY_AGAIN
from textinv_core.hosts import diffusers as host
from textinv_core.hosts.base import Sampling
from textinv_core.images import load_image, save_picture
from textinv_core.training.parallel import Processes


def run_folder(output, name="cat"):
    [folder] = (folder for folder in (output / "textual_inversion" / name).iterdir() if folder.is_dir())
    return folder


def toml(world, output, *lines):
    """A settings file's top and its pictures, for a training that `World.flags` also describes."""
    return "\n".join(
        [
            f"model = {json.dumps(str(world.folder / 'toyworld.safetensors'))}",
            f"model_config = {json.dumps(str(world.folder))}",
            f"output = {json.dumps(str(output))}",
            'init_text = "figure"',
            *lines,
            "[images]",
            f"folder = {json.dumps(str(world.folder / 'pictures'))}",
            "width = 64",
            "height = 64",
        ]
    )


@pytest.fixture
def nothing_loaded(monkeypatch):
    """No model is kept from an earlier command."""
    monkeypatch.setattr(inputs, "_loaded", {})


# What it leaves and says


def test_a_training_leaves_the_embedding_and_its_record(textinv, world, tmp_path):
    done = textinv("train", *world.flags, "--name", "cat", "--vectors", 2, "--steps", 3, "--plot", "--output", tmp_path)
    assert done.code == 0
    made = load_embedding(tmp_path / "cat.safetensors")
    assert (made.step, made.vectors["clip_l"].shape) == (3, (2, 96))
    assert made.metadata["textinv.sd_checkpoint_name"] == "toyworld"
    assert made.metadata["modelspec.resolution"] == "64x64"
    folder = run_folder(tmp_path)
    assert load_image(folder / "loss.png")[0].shape == (500, 900, 3)
    assert str(tmp_path / "cat.safetensors") in done.out and str(folder) in done.out


@pytest.mark.parametrize("told", [["--preset", "fast"], ["--optimizer", "sphere", "--learning-rate", "0.4"]])
def test_vectors_can_be_turned(textinv, world, tmp_path, told):
    done = textinv("train", *world.flags, *told, "--name", "cat", "--vectors", 2, "--steps", 2, "--output", tmp_path)
    assert done.code == 0, done.err
    made = load_embedding(tmp_path / "cat.safetensors").vectors["clip_l"]
    assert not torch.equal(made[0], made[1])
    assert float(made[0].norm()) == pytest.approx(float(made[1].norm()), rel=1e-6)  # that of the word both begin as


@pytest.mark.parametrize(("told", "size"), [([], "64x64"), (["--height", 32], "64x32")])
def test_the_size_is_the_model_s_own_where_none_is_set(textinv, world, tmp_path, told, size):
    flags = [*world.model, "--images", world.folder / "pictures", "--init-text", "figure", *told]
    done = textinv("train", *flags, "--name", "cat", "--steps", 1, "--output", tmp_path)
    assert done.code == 0 and size in done.out
    assert load_embedding(tmp_path / "cat.safetensors").metadata["modelspec.resolution"] == size


def test_previews_are_made_on_request_and_told_of(textinv, world, tmp_path):
    told = ("train", *world.flags, "--name", "cat", "--steps", 3, "--output", tmp_path, "--json")
    preview = ("--preview-every", 2, "--preview-steps", 2, "--preview-prompt", "[name] in snow", "--preview-width", 48)
    done = textinv(*told, *preview)
    made = [(each["step"], load_image(each["path"])[0].shape) for each in done.facts if each["event"] == "preview"]
    assert done.code == 0 and made == [(2, (64, 48, 3)), (3, (64, 48, 3))]
    host = load_model(world.folder / "toyworld.safetensors", world.folder, "cpu", "fp32")
    learnt = load_embedding(run_folder(tmp_path) / "image_embeddings" / "cat-3.png")
    [same] = host.sample(["embedding:cat in snow"], [0], (4, 8, 6), Sampling(2), [learnt])
    shown = load_image(done.event("preview")["path"])[0]
    assert torch.equal(shown, (same * 255).floor() / 255)


def test_with_json_every_line_is_a_fact(textinv, world, tmp_path):
    told = ("--name", "cat", "--steps", 3, "--save-every", 2, "--output", tmp_path, "--json")
    done = textinv("train", *world.flags, *told)
    events = [each["event"] for each in done.facts]
    assert events == ["start", "step", "step", "saved", "step", "done"]
    assert done.event("start")["pictures"] == 8 and done.event("start")["steps"] == 3
    assert {each["name"] for each in done.facts} == {"cat"}
    step = done.event("step")
    assert (step["step"], step["last_step"], step["learning_rate"]) == (3, 3, 0.002) and step["loss"] > 0
    assert load_embedding(done.event("saved")["path"]).step == 2
    assert load_embedding(done.event("done")["embedding"]).step == 3
    assert "step 3/3" in done.err  # the log, where there is no terminal for a progress bar


def test_the_best_step_is_told_with_its_file(textinv, world, tmp_path):
    told = ("--name", "cat", "--steps", 4, "--evaluate-every", 2, "--save-every", 0, "--held-out", 2)
    done = textinv("train", *world.flags, *told, "--output", tmp_path, "--json")
    assert [each["event"] for each in done.facts if each["event"] != "step"] == ["start", *["evaluated"] * 3, "done"]
    assert done.event("start")["pictures"] == 6
    found = {each["step"]: each["fixed_loss"] for each in done.facts if each["event"] == "evaluated"}
    assert [*found] == [0, 2, 4]
    best = min((2, 4), key=found.get)
    end = done.event("done")
    assert end["best_step"] == best and load_embedding(end["best"]).step == best
    assert f"The fixed loss was lowest after step {best}: {end['best']}" in done.err


def test_a_file_and_flags_mean_the_same(textinv, world, tmp_path):
    told = ("--name", "cat", "--vectors", 2, "--template", "a [name]", "--template", "the [name]", "--flip")
    told += ("--steps", 2, "--seed", 7, "--gradient-clipping", "norm", "--shuffle", "all", "--shuffle-per", "batch")
    assert textinv("train", *world.flags, *told, "--output", tmp_path / "flags").code == 0
    lines = ('name = "cat"', "vectors = 2", 'template = ["a [name]", "the [name]"]')
    text = toml(world, tmp_path / "file", *lines) + '\nflip = true\n[shuffle]\nmode = "all"\nper = "batch"\n'
    (tmp_path / "cat.toml").write_text(text + '[train]\nsteps = 9\nseed = 7\ngradient_clipping = "norm"\n')
    assert textinv("train", tmp_path / "cat.toml", "--steps", 2).code == 0
    by_flags, by_file = (run_folder(tmp_path / how) for how in ("flags", "file"))
    told, by_file = (json.loads((folder / "settings.json").read_text()) for folder in (by_flags, by_file))
    assert told.pop("written") != by_file.pop("written") and told == by_file
    assert (told["steps"], told["pictures"], told["shuffle"]["per"]) == (2, 16, "batch")
    rows = [load_embedding(tmp_path / how / "cat.safetensors").vectors["clip_l"] for how in ("flags", "file")]
    assert torch.equal(*rows)


def test_nothing_is_overwritten(textinv, world, tmp_path):
    told = ("train", *world.flags, "--name", "cat", "--steps", 1, "--output", tmp_path)
    assert textinv(*told).code == textinv(*told, "--seed", 1).code == 0
    assert (tmp_path / "cat.safetensors").exists() and (tmp_path / "cat_2.safetensors").exists()


def test_the_same_again_is_done_at_once_and_leaves_nothing_new(textinv, world, tmp_path):
    told = ("train", *world.flags, "--name", "cat", "--steps", 2, "--output", tmp_path, "--json")
    first, again = textinv(*told), textinv(*told)
    assert again.code == 0 and "has been trained on this already" in again.err
    assert [each["event"] for each in again.facts] == ["start", "done"]
    assert again.event("done") == first.event("done")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["cat.safetensors"]
    more = textinv(*told, "--steps", 3)
    assert more.event("done")["embedding"] == first.event("done")["embedding"]  # the same run's, and further
    assert load_embedding(tmp_path / "cat.safetensors").step == 3
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["cat.safetensors"]
    fresh = textinv(*told, "--resume", "fresh")
    assert fresh.event("step")["step"] == 2 and fresh.event("done")["folder"] != first.event("done")["folder"]
    assert textinv(*told, "--resume", "required", "--seed", 4).code == 1


def test_it_goes_on_from_a_file_under_its_name(textinv, world, tmp_path):
    told = ("train", *world.flags, "--steps", 4, "--output", tmp_path)
    assert textinv(*told, "--name", "cat", "--steps", 2).code == 0
    kept = run_folder(tmp_path) / "embeddings" / "cat-2.safetensors"
    assert textinv(*told, "--from", kept, "--steps", 4).code == 0
    assert load_embedding(tmp_path / "cat_2.safetensors").step == 4
    assert textinv(*told, "--from", kept, "--name", "dog").code == 0
    assert load_embedding(tmp_path / "dog.safetensors").step == 4


def test_prompts_can_name_other_embeddings(textinv, world, tmp_path):
    """Which are used, and not trained: they change the losses and stay as they are."""
    textinv("train", *world.flags, "--name", "dog", "--steps", 1, "--learning-rate", "1", "--output", tmp_path)
    dog = tmp_path / "dog.safetensors"
    before = dog.read_bytes()
    told = ("--name", "cat", "--steps", 1, "--template", "[name] and embedding:dog", "--json", "--output", tmp_path)
    without = textinv("train", *world.flags, *told)
    assert "names the embedding 'dog', which is not loaded" in without.err
    with_it = textinv("train", *world.flags, *told, "--embedding", dog)
    assert with_it.code == 0 and "not loaded" not in with_it.err
    assert with_it.event("step")["loss"] != without.event("step")["loss"]
    assert dog.read_bytes() == before


def test_going_on_with_another_model_forgets_the_earlier_one(textinv, world, tmp_path):
    earlier = {"textinv.base_model": "abc", "textinv.sd_checkpoint": "0123456789", "textinv.sd_checkpoint_name": "old"}
    kept = Embedding("cat", {"clip_l": torch.ones(1, 96)}, 1, {**earlier, "modelspec.author": "me"})
    save_embedding(kept, tmp_path / "cat.safetensors")
    told = ("--from", tmp_path / "cat.safetensors", "--steps", 2, "--output", tmp_path / "out")
    assert textinv("train", *world.flags, *told).code == 0
    facts = dict(load_embedding(tmp_path / "out" / "cat.safetensors").metadata)
    assert facts.pop("textinv.base_model") not in ("abc", "")
    assert facts == {
        "modelspec.author": "me",
        "modelspec.resolution": "64x64",
        "textinv.sd_checkpoint_name": "toyworld",
    }


# What goes wrong


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["--steps", "0"], "steps cannot be 0"),
        (["--learning-rate", "fast"], "'fast'"),
        (["--template", "stile"], "'stile'"),
        (["none.toml"], "none.toml"),
        (["--seed", "-1"], "seed cannot be -1"),
        (["--captions", "txt"], "captions cannot be 'txt'"),
        (["--resize", "zoom"], "resize cannot be 'zoom'"),
        (["--filename-word-regex", "["], "filename word regex"),
        (["--images", "nowhere"], "--images is 'nowhere'"),
        (["--model", "nowhere"], "--model is 'nowhere'"),
        (["--from", "nowhere"], "--from is 'nowhere'"),
        (["--preset", "fast", "--init-text", " "], "Give the embedding an init text"),
        (["--optimizer", "sphere", "--learning-rate", "2"], "more than a quarter turn"),
        *((["--device", name], f"no device '{name}' here") for name in ("meta", "cuda:9", "hpu", "xyz", "")),
    ],
)
def test_settings_it_cannot_use_end_with_2(textinv, world, told, words, nothing_loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "load", lambda *_: pytest.fail("a model is loaded"))
    done = textinv("train", *world.flags, *told, "--name", "cat", "--output", tmp_path, "--json")
    assert done.code == 2
    assert words in done.err and words in done.event("error")["message"] and done.event("error")["exit_code"] == 2


def test_a_key_that_means_nothing_ends_with_2(textinv, tmp_path):
    (tmp_path / "cat.toml").write_text("[train]\nstep = 5\n")
    done = textinv("train", tmp_path / "cat.toml")
    assert done.code == 2 and "Did you mean 'steps'?" in done.err


def test_what_fails_ends_with_1(textinv, world, tmp_path):
    told = ("train", *world.model, "--name", "cat", "--output", tmp_path)
    done = textinv(*told, "--images", world.folder / "pictures", "--learning-rate", "1e30", "--width", 64, "--json")
    assert done.code == 1 and "diverged" in done.event("error")["message"]
    assert "Traceback" not in done.err


# Interrupts


ON_POSIX = pytest.mark.skipif(sys.platform == "win32", reason="a process there cannot be sent signals by itself")


def reach(process, step):
    """Wait until a process has done a step."""
    for line in process.stdout:
        if json.loads(line).get("step", 0) >= step:
            return


@ON_POSIX
@pytest.mark.parametrize(
    ("name", "times", "status"),
    [
        ("SIGTERM", 2, 143),  # wrappers may send it to the process, and to its group
        pytest.param("SIGHUP", 1, 129, marks=pytest.mark.long),
    ],
)
def test_an_interrupt_keeps_what_was_learnt_and_says_how_to_go_on(
    start, ended, textinv, world, tmp_path, monkeypatch, name, times, status
):
    process = start("train", *world.flags, "--name", "my-cat", "--steps", 100_000, "--json")
    reach(process, 3)
    for _ in range(times):
        process.send_signal(getattr(signal, name))
        time.sleep(0.02)  # the second while what the first has begun is under way
    stopped = ended(process)
    assert stopped.code == status and "Traceback" not in stopped.err
    last = stopped.facts[-1]
    assert (last["event"], last["exit_code"]) == ("error", status)
    kept = stopped.event("saved")["path"]
    go_on = last["go_on"]
    assert go_on in stopped.err

    *_, program, command = go_on.partition("-m textinv_core ")
    assert program
    step = int(kept.removesuffix(".safetensors").rpartition("-")[2])
    assert step >= 3
    monkeypatch.chdir(tmp_path)
    again = textinv(*shlex.split(command), "--steps", step + 2)
    assert again.code == 0
    assert again.event("start")["step"] == step
    done = again.event("done")
    assert (done["name"], done["step"]) == ("my-cat", step + 2)


@ON_POSIX
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_step_ends_with_a_sentence(start, ended, world, number, status):
    process = start("train", *world.flags, "--name", "cat")
    next(process.stdout)
    process.send_signal(number)
    stopped = ended(process)
    assert (stopped.code, stopped.err) == (status, "Stopped.\n")


@ON_POSIX
def test_the_first_ctrl_c_finishes_and_the_same_command_goes_on(start, ended, textinv, world, tmp_path, monkeypatch):
    told = ("train", *world.flags, "--name", "my-cat", "--steps", 100_000, "--json")
    process = start(*told)
    reach(process, 3)
    for _ in range(2):  # wrappers may send it to the process, and to its group
        process.send_signal(signal.SIGINT)
    finished = ended(process)
    assert finished.code == 0 and "Traceback" not in finished.err
    assert finished.err.count("Finishing after this step. Ctrl-C once more stops at once.") == 1
    *_, evaluated, said, done = finished.facts
    step = finished.event("step")["step"]
    assert (evaluated["event"], said["event"], done["event"]) == ("evaluated", "finish", "done") and step >= 3
    assert evaluated["step"] == said["step"] == done["step"] == step and done["verdict"]["is_read"]
    assert load_embedding(tmp_path / done["embedding"]).step == step
    assert f"To go on with the other {100_000 - step}, type:\n{done['go_on']}" in finished.err

    *_, program, command = done["go_on"].partition("-m textinv_core ")
    assert program
    monkeypatch.chdir(tmp_path)
    again = textinv(*shlex.split(command), "--steps", step + 2)
    assert again.event("start")["step"] == step and again.event("done")["folder"] == done["folder"]
    assert again.code == 0 and "go_on" not in again.event("done")


@ON_POSIX
def test_the_second_ctrl_c_stops_in_the_midst_of_a_step(start, ended, world, tmp_path):
    """One of 50 batches, which takes some seconds."""
    slow = ("--gradient-accumulation", 50, "--batch-size", 4)
    process = start("train", *world.flags, "--name", "cat", "--steps", 100, *slow, "--json")
    reach(process, 1)
    process.send_signal(signal.SIGINT)
    time.sleep(ONE_PRESS + 0.1)
    for _ in range(2):  # the second while what the first has begun is under way
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    stopped = ended(process)
    assert stopped.code == 130 and "Traceback" not in stopped.err
    assert load_embedding(tmp_path / stopped.event("saved")["path"]).step == 1
    assert stopped.event("error")["go_on"] in stopped.err


@pytest.mark.long
@ON_POSIX
def test_ctrl_c_ends_a_list_with_the_job_it_has_finished(start, ended, textinv, world, tmp_path, monkeypatch):
    jobs = '[train]\nsteps = 100_000\n[[job]]\nname = "cat"\n[[job]]\nname = "dog"'
    (tmp_path / "pets.toml").write_text(toml(world, tmp_path / "out") + "\n" + jobs)
    process = start("train", "pets.toml", "--json")
    reach(process, 3)
    process.send_signal(signal.SIGINT)
    finished = ended(process)
    assert finished.code == 0 and "Traceback" not in finished.err
    step = finished.event("finish")["step"]
    assert {each["name"] for each in finished.facts} == {"cat"}
    assert f"cat: finished early, at step {step}. It is kept in {run_folder(tmp_path / 'out')}" in finished.err
    assert not (tmp_path / "out" / "textual_inversion" / "cat" / "job.json").exists()
    assert not (tmp_path / "out" / "cat.safetensors").exists()  # a job may wait for this one's whole result

    text = (tmp_path / "pets.toml").read_text().replace("100_000", str(step + 1))
    (tmp_path / "pets.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    again = textinv("train", "pets.toml", "--json")
    assert again.code == 0
    assert [each["step"] for each in again.facts if each["event"] == "start"] == [step, 0]
    assert [each["step"] for each in again.facts if each["event"] == "done"] == [step + 1] * 2


@pytest.mark.long
def test_a_reader_that_has_gone_costs_nothing(start, world, tmp_path):
    process = start("train", *world.flags, "--name", "cat", "--steps", 3, "--json")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(300) == 0
    assert load_embedding(tmp_path / "output" / "cat.safetensors").step == 3


def full(*_):
    raise OSError(28, "No space left on device")


def test_what_can_be_written_nowhere_is_held_until_it_can_be(textinv, world, tmp_path, monkeypatch):
    waits = []

    def full_for_two_waits(*arguments):
        save_embedding(*arguments) if len(waits) == 2 else full()

    monkeypatch.setattr("textinv_core.formats.save_embedding", full_for_two_waits)
    monkeypatch.setattr("textinv_core.training.folder.save_embedding", full)
    monkeypatch.setattr("textinv_core.commands.trained.time.sleep", waits.append)
    done = textinv("train", *world.flags, "--name", "cat", "--steps", 1, "--output", tmp_path)
    assert done.code == 0 and waits == [TRY_AGAIN] * 2
    assert done.out.count("can be written nowhere") == 1
    assert load_embedding(tmp_path / "cat.safetensors").step == 1


def test_a_plot_that_cannot_be_written_costs_nothing_else(textinv, world, tmp_path, monkeypatch):
    monkeypatch.setattr("textinv_core.training.folder.save_picture", full)
    done = textinv("train", *world.flags, "--name", "cat", "--steps", 1, "--plot", "--output", tmp_path, "--json")
    assert done.code == 0 and "No space left" in done.err
    assert load_embedding(done.event("done")["embedding"]).step == 1


def test_a_disk_that_is_full_at_the_end_is_said_with_the_newest_copy(textinv, world, tmp_path, monkeypatch):
    monkeypatch.setattr("textinv_core.formats.save_embedding", full)  # not the run's own copies
    done = textinv("train", *world.flags, "--name", "cat", "--steps", 1, "--output", tmp_path)
    assert done.code == 1 and "No space left on device" in done.err
    assert str(run_folder(tmp_path) / "embeddings" / "cat-1.safetensors") in done.err


def test_an_interrupt_after_the_last_step_says_where_the_embedding_is(textinv, world, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("textinv_core.formats.save_embedding", interrupt)
    done = textinv("train", *world.flags, "--name", "cat", "--steps", 1, "--output", tmp_path)
    assert done.code == 130
    assert str(run_folder(tmp_path) / "embeddings" / "cat-1.safetensors") in done.err


# Several processes


@pytest.mark.usefixtures("one_thread")
def test_processes_that_share_a_training_leave_what_one_does(start, ended, textinv, world, tmp_path):
    told = ("train", *world.flags, "--name", "cat", "--steps", 4)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    in_one = ("--batch-size", 2, "--gradient-accumulation", 1, "--output", tmp_path / "shared", "--json")
    shared = ended(start(*told, *in_one, launcher=launcher))
    assert shared.code == 0, shared.err
    in_two = ("--batch-size", 1, "--gradient-accumulation", 2, "--output", tmp_path / "alone", "--json")
    alone = textinv(*told, *in_two)
    assert [each["event"] for each in shared.facts] == [each["event"] for each in alone.facts]
    assert run_folder(tmp_path / "shared")
    one, two = (load_embedding(tmp_path / how / "cat.safetensors").vectors for how in ("alone", "shared"))
    assert torch.equal(one["clip_l"], two["clip_l"])


@pytest.mark.long
@ON_POSIX
def test_ctrl_c_finishes_all_processes_that_share_a_training(start, ended, world, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    told = ("train", *world.flags, "--name", "cat", "--steps", 100_000, "--json")
    process = start(*told, launcher=launcher)
    reach(process, 3)
    process.send_signal(signal.SIGINT)  # to the launcher, which passes it on
    finished = ended(process)
    said, done = finished.event("finish"), finished.event("done")
    assert load_embedding(tmp_path / done["embedding"]).step == said["step"] == finished.event("step")["step"]
    assert "has ended or does not answer" not in finished.err


def test_processes_that_cannot_share_a_step_end_with_2_and_leave_nothing(
    textinv, world, nothing_loaded, tmp_path, monkeypatch
):
    monkeypatch.setattr("textinv_core.training.parallel.join", lambda: Processes(0, 2))
    monkeypatch.setattr(host, "load", lambda *_: pytest.fail("a model is loaded"))
    told = ("--name", "cat", "--gradient-accumulation", 3, "--output", tmp_path / "out")
    done = textinv("train", *world.flags, *told)
    assert done.code == 2 and "share a step of 3 pictures evenly" in done.err
    assert not (tmp_path / "out").exists()


# Job lists


def test_a_job_list_trains_all_and_started_again_what_is_not_done(textinv, world, tmp_path):
    jobs = """
[train]
steps = 2
[[job]]
name = "cat"
[[job]]
name = "dog"
vectors = 2
train.learning_rate = "1e30"
[[job]]
name = "cow"
train.seed = 3
"""
    file = tmp_path / "jobs.toml"
    file.write_text(toml(world, tmp_path) + jobs)
    first = textinv("train", file, "--json")
    assert first.code == 1
    ended = {each["name"]: each["state"] for each in first.facts if each["event"] == "job"}
    assert ended == {"cat": "done", "dog": "failed", "cow": "done"}
    assert "dog" in first.event("error")["message"] and "diverged" in first.err
    assert json.loads((run_folder(tmp_path, "cow") / "settings.json").read_text())["seed"] == 3

    file.write_text(toml(world, tmp_path) + jobs.replace('train.learning_rate = "1e30"\n', ""))
    again = textinv("train", file, "--json")
    assert again.code == 0
    ended = {each["name"]: each["state"] for each in again.facts if each["event"] == "job"}
    assert ended == {"cat": "there", "dog": "done", "cow": "there"}
    assert len(load_embedding(tmp_path / "dog.safetensors").vectors["clip_l"]) == 2
    assert not (tmp_path / "cat_2.safetensors").exists()


def test_all_jobs_are_checked_before_the_first_is_trained(textinv, world, tmp_path, nothing_loaded, monkeypatch):
    file = tmp_path / "jobs.toml"
    job = '[[job]]\nname = "cat"\n[[job]]\nname = "dog"\nimages = "nowhere"\n[[job]]\nname = "cow"\nfrom = "none.pt"\n'
    file.write_text(toml(world, tmp_path / "out") + "\n" + job)
    with monkeypatch.context() as patch:
        patch.setattr(host, "load", lambda *_: pytest.fail("a model is loaded"))
        done = textinv("train", file, "--json")
    assert done.code == 2 and not (tmp_path / "out").exists()
    [error] = done.facts
    assert "Job 'dog': folder in [images] is 'nowhere'" in error["message"]
    assert "Job 'cow': from is 'none.pt'" in error["message"]


def test_pictures_of_jobs_that_are_done_may_be_gone(textinv, world, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    save_picture(torch.rand(64, 64, 3), pictures / "a.png")
    file = tmp_path / "jobs.toml"
    common = toml(world, tmp_path) + "\n[train]\nsteps = 1\n"
    cat = f'[[job]]\nname = "cat"\nimages = {json.dumps(str(pictures))}\n'
    file.write_text(common + cat)
    assert textinv("train", file).code == 0
    (pictures / "a.png").unlink()
    pictures.rmdir()
    file.write_text(common + cat + '[[job]]\nname = "dog"\n')
    assert textinv("train", file).code == 0


@pytest.mark.long
def test_processes_that_cannot_start_say_so_once(start, ended, world, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = ended(start("train", *world.flags, "--name", "cat", "--images", "nowhere", launcher=launcher))
    assert done.err.count("--images is 'nowhere'") == 1
    done = ended(start("train", *world.flags, "--name", "cat", "--images", tmp_path, launcher=launcher))
    assert done.err.count("has no pictures") == 1


def test_models_of_a_job_list_are_not_kept(nothing_loaded, monkeypatch, tmp_path):
    loaded, alive = [], []

    class Pipeline:
        def __init__(self):
            self.itself = self  # as modules and their methods refer to one another

    def load(path, *_):
        loaded.append(path)
        alive.append([each() for each in kept])
        pipe = Pipeline()
        kept.append(weakref.ref(pipe))
        return pipe

    kept = []
    monkeypatch.setattr(host, "load", load)
    for name in "aabab":
        load_model(tmp_path / name, None, "cpu", "fp32")
    assert [path.name for path in loaded] == ["a", "b", "a", "b"]
    assert all(each is None for there in alive for each in there)


@pytest.mark.parametrize(("rank", "tells"), [("0", True), ("1", False)])
def test_of_several_processes_the_first_tells_how_all_jobs_ended(textinv, tmp_path, world, monkeypatch, rank, tells):
    monkeypatch.setenv("RANK", rank)
    file = tmp_path / "jobs.toml"
    # What an earlier job may leave is looked for when it is a job's turn.
    awaited = json.dumps(str(tmp_path / "dog-1.safetensors"))
    job = f'[[job]]\nname = "cat"\ntrain.steps = 1\n[[job]]\nname = "dog"\nfrom = {awaited}\n'
    file.write_text(toml(world, tmp_path) + "\n" + job)
    done = textinv("train", file, "--json")
    assert done.code == 1
    events = [each["event"] for each in done.facts]
    assert events[:3] == ["start", "step", "done"]  # of its own jobs each process tells
    assert events[3:] == (["job", "job", "error"] if tells else [])
    assert ("1 of 2 jobs failed" in done.err) == tells


@pytest.mark.skipif(sys.platform == "win32", reason="a process there cannot be sent SIGTERM by itself")
def test_a_job_that_the_launcher_ends_keeps_what_was_learnt(start, ended, world, tmp_path):
    file = tmp_path / "jobs.toml"
    file.write_text(toml(world, tmp_path) + '\n[[job]]\nname = "cat"\ntrain.steps = 100_000\n')
    process = start("train", file, "--json", RANK="0", WORLD_SIZE="2")
    for line in process.stdout:
        if json.loads(line).get("step", 0) >= 3:
            break
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 128 + signal.SIGTERM
    [kept] = (run_folder(tmp_path) / "embeddings").iterdir()
    assert load_embedding(kept).step >= 3


def test_jobs_need_names_of_their_own_and_one_output(textinv, world, tmp_path):
    file = tmp_path / "jobs.toml"
    file.write_text(toml(world, tmp_path) + '\n[[job]]\nname = "cat"\n[[job]]\nname = "cat"\n')
    done = textinv("train", file)
    assert done.code == 2 and "'cat'" in done.err
    file.write_text(toml(world, tmp_path) + '\n[[job]]\nname = "cat"\n[[job]]\nname = "dog"\noutput = "elsewhere"\n')
    done = textinv("train", file)
    assert done.code == 2 and "elsewhere" in done.err
