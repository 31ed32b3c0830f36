"""`textinv demo`, on an untrained world."""

import importlib
from dataclasses import replace

import pytest
import torch

pytest.importorskip("cyclopts")
pytest.importorskip("diffusers")

from benchmarks.toyworld.world import COLOUR_NAMES, demo_character, judge
from textinv_core import load_embedding
from textinv_core.commands.demo import NAME, SETTINGS, SURROUNDINGS, WORLD, run
from textinv_core.commands.output import Report
from textinv_core.images import load_image

demo = importlib.import_module("textinv_core.commands.demo")  # the package has the command itself under that name


@pytest.fixture(scope="module")
def made(world, tmp_path_factory):
    """What a short demo leaves, twice in one folder, and where."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SAMPLING_STEPS", 1)
        run(world.folder, out, Report(), replace(SETTINGS, steps=2))
        return run(world.folder, out, Report(), replace(SETTINGS, steps=4)), out


def test_it_leaves_the_embedding_the_losses_and_the_picture(made):
    paths, out = made
    assert paths == {"embedding": out / f"{NAME}.safetensors", "loss": out / "loss.png", "picture": out / "demo.png"}
    embedding = load_embedding(paths["embedding"])
    assert (embedding.name, embedding.step) == (NAME, 4)
    assert load_image(paths["loss"])[0].shape == (500, 900, 3)


def test_the_picture_shows_what_was_learnt_from_in_its_first_column(made, world):
    picture, _ = load_image(made[0]["picture"])
    reference, _ = load_image(world.folder / "pictures" / "0.png")
    enlarged = reference.repeat_interleave(2, 0).repeat_interleave(2, 1)
    side = len(enlarged)
    places = [
        left
        for top in range(100)
        for left in range(picture.shape[1] // 4)
        if torch.equal(picture[top, left : left + side], enlarged[0])
        and torch.equal(picture[top : top + side, left : left + side], enlarged)
    ]
    assert len(places) == 1


def test_the_number_of_threads_changes_nothing(made, world, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SAMPLING_STEPS", 1)
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    torch.set_num_threads(other)
    try:
        found = run(world.folder, tmp_path, Report(), replace(SETTINGS, steps=4))
        assert torch.get_num_threads() == other
    finally:
        torch.set_num_threads(before)
    assert all(found[kind].read_bytes() == made[0][kind].read_bytes() for kind in ("picture", "loss"))


def test_without_its_model_it_says_where_that_is(textinv, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "WORLD", tmp_path / "toyworld")
    done = textinv("demo", "--out", tmp_path)
    assert done.code == 1 and "from a clone" in done.err and "Traceback" not in done.err


def test_its_prompts_ask_for_what_no_bundled_picture_shows():
    bundled = [load_image(file)[0] for file in sorted((WORLD / "pictures").iterdir())]
    scenes = judge(torch.stack(bundled))
    assert len(scenes) == 8 and all(vars(demo_character()).items() <= vars(scene).items() for scene in scenes)
    for words in ", ".join(SURROUNDINGS).split(", "):
        colour, part = words.split()
        assert COLOUR_NAMES.index(colour) not in {getattr(scene, part) for scene in scenes}
