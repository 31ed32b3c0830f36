"""Embeddings turned to pictures by the real host's CLIP and CLIP_VISION: random towers, which show that it works; what
it is good for takes models that have learnt something."""

import shutil

import pytest
import torch

from tests.rig import PACK
from textinv_core import load_embedding

WORLD = PACK / "textinv_core" / "toyworld"


@pytest.fixture(scope="module")
def found(inside) -> dict:
    return inside("warm_start.py")


def test_prompts_come_near_the_pictures_as_the_host_compares_them(found):
    before, after = found["cosine"]
    assert after > before + 0.15
    assert found["as the host"] < 1e-5
    [said] = found["said"]
    assert said.startswith("textinv: cosine of cat with 3 pictures: ") and "(clip_g, 40 steps, " in said


def test_all_is_as_it_was_whatever_ends_it(found):
    assert found["as it was"]
    assert found["interrupted"] == {"after one step": True, "as it was": True}


def test_what_is_not_compared_stays(found):
    assert found["the rest"] == {"clip_l": True, "lengths": True, "name, step": True}


def test_what_cannot_be_compared_is_a_sentence(found):
    errors = found["errors"]
    assert all(error.startswith("UserError: ") for error in errors.values())
    assert "puts out vectors 64 wide" in errors["width"]
    assert "has no projection" in errors["no projection"]
    assert "there is no CLIP vision model" in errors["none"]
    for mismatch in ("width", "no projection", "none"):
        assert "CLIP-ViT-bigG-14-laion2B-39B-b160k, 96 wide, for clip_g" in errors[mismatch]
    assert "With 72 vectors the embedding 'cat' does not fit into one window" in errors["too many"]
    assert "may lack the text projection" in errors["no text projection"]


def graph(name: str, clip: str = "towers", number: int = 0, **connected) -> dict:
    start = {"clip": [clip, number], "name": name, "init_text": "figure", "vectors": 4, **connected}
    save = {"embedding": ["new", 0], "format": "safetensors", "overwrite": False}
    load = {"folder": "seen", "recursive": False, "captions": "none", "filename_word_regex": "",
            "filename_join_string": " "}  # fmt: skip
    return {
        "towers": {"class_type": "TestLoadTowers", "inputs": {}},
        "world": {"class_type": "TestLoadToyWorld", "inputs": {"folder": str(WORLD)}},
        "pictures": {"class_type": "TextInvLoadImages", "inputs": load},
        "new": {"class_type": "TextInvCreateEmbedding", "inputs": start},
        "save": {"class_type": "TextInvSaveEmbedding", "inputs": save},
    }


def test_in_a_graph(server, base):
    shutil.copytree(WORLD / "pictures", base / "input" / "seen")
    pictures = len(list((WORLD / "pictures").glob("*.png")))
    both = {"clip_vision": ["towers", 1], "images": ["pictures", 0]}
    server.run(graph("cold"))
    server.run(graph("warm", **both))
    assert f"cosine of warm with {pictures} pictures: " in server.log_text()  # a list of them, all for one embedding
    saved = [[*(base / "models" / "embeddings").glob(f"{name}*.safetensors")] for name in ("cold", "warm")]
    cold, warm = (load_embedding(file).vectors for [file] in saved)
    assert torch.equal(cold["clip_l"], warm["clip_l"])
    assert torch.cosine_similarity(cold["clip_g"], warm["clip_g"]).max() < 0.9

    for alone in both:
        with pytest.raises(server.Error, match=rf"TextInvCreateEmbedding \(new\): .*{alone} alone does nothing"):
            server.post(graph("alone", **{alone: both[alone]}))
    with pytest.raises(server.Error, match=r"an SD1\.x checkpoint has none\. Disconnect clip_vision and images"):
        server.run(graph("sd1", "world", 1, **both))
