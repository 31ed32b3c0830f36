"""`textinv apply`."""

import pytest
import torch

pytest.importorskip("cyclopts")
pytest.importorskip("diffusers")

from textinv_core import Embedding, save_embedding
from textinv_core.images import load_image


@pytest.fixture
def cat(tmp_path):
    rows = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
    save_embedding(Embedding("cat", {"clip_l": rows}), tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


def test_pictures_for_each_prompt_and_seed(textinv, world, cat, tmp_path):
    prompts = ("embedding:cat, red hat", "a figure")
    told = ("--steps", 2, "--count", 2, "--seed", 5, "--out", tmp_path / "out", "--json")
    done = textinv("apply", *prompts, *world.model, "--embedding", cat, *told)
    assert done.code == 0
    assert done.err.startswith(f"Loading {world.model[1]}\n")
    steps = [(each["prompt"], each["step"], each["last_step"]) for each in done.facts if each["event"] == "step"]
    assert steps == [(prompt, step, 2) for prompt in prompts for step in (1, 2)]
    kept = [each for each in done.facts if each["event"] == "saved"]
    saved = [(each["prompt"], each["seed"]) for each in kept]
    assert saved == [(prompt, seed) for prompt in prompts for seed in (5, 6)]
    shown = [load_image(each["path"])[0] for each in kept]
    assert all(picture.shape == (64, 64, 3) for picture in shown)  # the size the model was made for
    assert not any(torch.equal(a, b) for i, a in enumerate(shown) for b in shown[:i])


def test_nothing_is_overwritten(textinv, world, tmp_path):
    told = ("apply", "a figure", *world.model, "--steps", 1, "--width", 32, "--height", 16, "--out", tmp_path)
    assert textinv(*told).code == textinv(*told).code == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["01-0.png", "01-0_2.png"]
    assert load_image(tmp_path / "01-0.png")[0].shape == (16, 32, 3)


@pytest.mark.parametrize("told", [("embedding:dog",), ("a cat", "--negative", "(bad embedding:dog, :1.2)")])
def test_an_embedding_that_was_not_given_is_named(textinv, world, cat, told):
    done = textinv("apply", *told, *world.model, "--embedding", cat)
    assert done.code == 2
    assert "'dog'" in done.err and "given: cat" in done.err


def test_two_of_one_name_are_refused(textinv, world, cat):
    done = textinv("apply", "embedding:cat", *world.model, "--embedding", cat, "--embedding", cat)
    assert done.code == 2 and "'cat'" in done.err


def test_what_fails_is_a_sentence(textinv, world, tmp_path):
    done = textinv("apply", "a cat", "--model", tmp_path / "none.safetensors")
    assert done.code == 2 and "--model is" in done.err and "none.safetensors" in done.err
    done = textinv("apply", "a cat", *world.model, "--device", "cuda:7")
    assert done.code == 1 and "'cuda:7'" in done.err
