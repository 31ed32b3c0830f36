"""`textinv inspect`."""

import importlib

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("cyclopts")

from textinv_core import Embedding, save_embedding


@pytest.fixture
def file(tmp_path):
    vectors = {"clip_l": torch.tensor([[3.0, 4.0] + [0.0] * 94, [0.0] * 95 + [2.0]])}
    facts = {"textinv.sd_checkpoint_name": "toy", "textinv.note": "a\x1b[31mb"}
    save_embedding(Embedding("cat", vectors, 12, facts), tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


def test_it_shows_all_there_is(textinv, file):
    done = textinv("inspect", file)
    assert done.code == 0
    for words in ("embedding:cat", "steps: 12", "model: toy", "clip_l: 2 x 96", "5.000", "2.000"):
        assert words in done.out


def test_somebody_elses_text_does_nothing_to_the_terminal(textinv, file):
    assert "\x1b" not in textinv("inspect", file).out


def test_as_json_it_is_one_object(textinv, file):
    done = textinv("inspect", file, "--json")
    [facts] = done.facts
    assert (facts["name"], facts["step"], facts["base_model"]) == ("cat", 12, "toy")
    assert facts["encoders"] == {"clip_l": {"width": 96, "vectors": [{"norm": 5.0}, {"norm": 2.0}]}}


def test_keys_are_shown_as_they_are(textinv, tmp_path):
    save_embedding(Embedding("cat", {"clip_l": torch.ones(1, 4)}), tmp_path / "cat.safetensors")
    facts = {"name": "cat", "step": 1, "base_model": None, "metadata": {}}
    facts["encoders"] = {"clip_l[/x] [red]": {"width": 4, "vectors": [{"norm": 2.0}]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("textinv_core.commands.inspect"), "_facts", lambda *_: facts)
        assert "clip_l[/x] [red]:" in textinv("inspect", tmp_path / "cat.safetensors").out


def test_each_encoder_has_a_line_and_comes_once(textinv, tmp_path):
    """T5 is in the file twice; the names of other encoders are longer than their tables are wide."""
    vectors = {"t5xxl": torch.ones(1, 4096), "qwen3vl_4b": torch.ones(1, 2560)}
    save_embedding(Embedding("cat", vectors), tmp_path / "cat.safetensors")
    lines = textinv("inspect", tmp_path / "cat.safetensors").out.splitlines()
    titles = [line.strip() for line in lines if " x " in line]
    assert titles == ["qwen3vl_4b: 1 x 2560", "t5xxl: 1 x 4096"]


def test_huge_vectors_have_norms(textinv, tmp_path):
    save_embedding(Embedding("cat", {"clip_l": torch.full((1, 4), 1e38)}), tmp_path / "cat.safetensors")
    [facts] = textinv("inspect", tmp_path / "cat.safetensors", "--json").facts
    assert facts["encoders"]["clip_l"]["vectors"][0]["norm"] == pytest.approx(2e38)


def test_more_words_than_there_are_shows_those_that_count(textinv, world, tmp_path):
    save_embedding(Embedding("cat", {"clip_l": torch.ones(1, 96)}), tmp_path / "cat.safetensors")
    [facts] = textinv("inspect", tmp_path / "cat.safetensors", *world.model, "--words", 10**6, "--json").facts
    words = facts["encoders"]["clip_l"]["vectors"][0]["words"]
    assert words and all(-1.001 <= word["similarity"] <= 1.001 for word in words)


def test_with_a_model_it_shows_the_nearest_words(textinv, world, tmp_path):
    told = ("--name", "cat", "--vectors", 1, "--steps", 1, "--learning-rate", "1e-9", "--output", tmp_path)
    textinv("train", *world.flags, *told)
    [facts] = textinv("inspect", tmp_path / "cat.safetensors", *world.model, "--words", 2, "--json").facts
    [vector] = facts["encoders"]["clip_l"]["vectors"]
    assert [word["word"] for word in vector["words"]][:1] == ["figure"] and len(vector["words"]) == 2
    assert vector["words"][0]["similarity"] == pytest.approx(1, abs=1e-3)


def test_a_file_that_is_none_is_a_sentence(textinv, tmp_path):
    (tmp_path / "bad.pt").write_bytes(b"no")
    done = textinv("inspect", tmp_path / "bad.pt")
    assert done.code == 1 and "'bad.pt'" in done.err
    done = textinv("inspect", tmp_path / "none.pt")
    assert done.code == 2 and "FILE is" in done.err and "no such file" in done.err


def test_a_model_it_does_not_fit_is_a_sentence(textinv, world, tmp_path):
    save_embedding(Embedding("cat", {"clip_l": torch.ones(1, 768)}), tmp_path / "cat.safetensors")
    done = textinv("inspect", tmp_path / "cat.safetensors", *world.model)
    assert done.code == 1 and "does not fit" in done.err


def test_of_a_bundle_one_is_named(textinv, tmp_path):
    save_file(
        {f"bundle_emb.{name}.clip_l": torch.rand(1, 768) for name in ("<cat>", "dog")}, tmp_path / "lora.safetensors"
    )
    assert "holds 2 embeddings, '<cat>', 'dog'" in textinv("inspect", tmp_path / "lora.safetensors").err
    assert "embedding:cat" in textinv("inspect", tmp_path / "lora.safetensors", "--name", "<cat>").out
