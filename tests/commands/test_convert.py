"""`textinv convert`."""

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("cyclopts")

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.commands.demo import WORLD
from textinv_core.images import save_picture


@pytest.fixture
def file(tmp_path):
    save_embedding(Embedding("cat", {"clip_l": torch.randn(2, 768)}, 12), tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


def test_the_ending_says_of_which_kind(textinv, file, tmp_path):
    done = textinv("convert", file, tmp_path / "dog.pt", "--json")
    assert done.code == 0
    assert done.event("saved") == {"event": "saved", "path": str(tmp_path / "dog.pt"), "name": "dog", "step": 12}
    made = load_embedding(tmp_path / "dog.pt")
    assert (made.name, made.step) == ("dog", 12)
    assert torch.equal(made.vectors["clip_l"], load_embedding(file).vectors["clip_l"])


@pytest.mark.parametrize("out", ["dog.bin", "dog.pt"])
def test_what_a_kind_of_file_has_no_place_for_is_said(textinv, tmp_path, out):
    both = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    save_embedding(Embedding("cat", both, 12, {"textinv.base_model": "abc"}), tmp_path / "cat.safetensors")
    done = textinv("convert", tmp_path / "cat.safetensors", tmp_path / out, "--json")
    assert done.code == 0 and done.event("saved")["lost"] == ["step", "textinv.base_model"]
    assert "no place for step, textinv.base_model" in done.err
    done = textinv("convert", tmp_path / "cat.safetensors", tmp_path / "dog.safetensors", "--json")
    assert "lost" not in done.event("saved") and "no place" not in done.err


def test_a_picture_that_goes_nowhere_is_said(textinv, file, tmp_path):
    save_picture(torch.rand(96, 96, 3), tmp_path / "p.png")
    done = textinv("convert", file, tmp_path / "dog.pt", "--picture", tmp_path / "p.png")
    assert done.code == 0 and "p.png was not used" in done.err


def test_a_png_needs_a_picture(textinv, file, tmp_path):
    done = textinv("convert", file, tmp_path / "dog.png")
    assert done.code == 2 and "--picture" in done.err
    save_picture(torch.rand(96, 96, 3), tmp_path / "p.png")
    assert textinv("convert", file, tmp_path / "dog.png", "--picture", tmp_path / "p.png").code == 0
    assert load_embedding(tmp_path / "dog.png").name == "dog"


def test_nothing_is_overwritten_unasked(textinv, file, tmp_path):
    (tmp_path / "dog.pt").write_bytes(b"mine")
    done = textinv("convert", file, tmp_path / "dog.pt")
    assert done.code == 2 and "--overwrite" in done.err
    assert (tmp_path / "dog.pt").read_bytes() == b"mine"
    assert textinv("convert", file, tmp_path / "dog.pt", "--overwrite").code == 0
    assert load_embedding(tmp_path / "dog.pt").step == 12


@pytest.mark.parametrize(("out", "words"), [("dog.txt", "'dog.txt'"), ("my dog.pt", "Try 'my_dog'")])
def test_a_name_it_cannot_have_is_a_sentence(textinv, file, tmp_path, out, words):
    done = textinv("convert", file, tmp_path / out)
    assert done.code == 2 and words in done.err


def test_of_a_bundle_one_is_named(textinv, tmp_path):
    lora = {"lora_unet_x.weight": torch.ones(2, 2)}
    names = ("<cat>", "dog")
    bundled = {f"bundle_emb.{name}.clip_l": torch.full((1, 768), float(i)) for i, name in enumerate(names)}
    save_file(lora | bundled, tmp_path / "lora.safetensors")
    done = textinv("convert", tmp_path / "lora.safetensors", tmp_path / "my-dog.pt")
    assert done.code == 1 and "holds 2 embeddings, '<cat>', 'dog': choose one of them by --name." in done.err
    for command in (("apply", "x", "--embedding"), ("train", "--images", tmp_path, "--from")):
        done = textinv(
            *command, tmp_path / "lora.safetensors", "--model", WORLD / "toyworld.safetensors", "--model-config", WORLD
        )
        assert done.code == 2 and "textinv convert" in done.err and "--name '<cat>'" in done.err
    assert textinv("convert", tmp_path / "lora.safetensors", tmp_path / "my-dog.pt", "--name", "dog").code == 0
    made = load_embedding(tmp_path / "my-dog.pt")
    assert made.name == "my-dog" and made.vectors["clip_l"].eq(1).all()
