import pytest
import torch

from textinv_core import Embedding
from textinv_core.errors import UserError
from textinv_core.formats.a1111 import from_data, to_data

SIX = ["string_to_token", "string_to_param", "name", "step", "sd_checkpoint", "sd_checkpoint_name"]


def read(data):
    return from_data(data, "cat", "cat.pt")


def test_the_dictionary_is_a1111s_and_then_ours():
    facts = {"textinv.sd_checkpoint": "81761151", "textinv.base_model": "abc", "modelspec.title": "Cat", "author": "me"}
    data = to_data(Embedding("cat", {"clip_l": torch.ones(2, 768)}, 7, facts), "cat.pt")
    assert list(data) == [*SIX, "textinv.encoder", "textinv.base_model"]
    assert data["string_to_token"] == {"*": 265}
    assert torch.equal(data.pop("string_to_param")["*"], torch.ones(2, 768))
    assert list(data.values())[1:] == ["cat", 7, "81761151", None, "clip_l", "abc"]


def test_facts_that_no_file_can_hold_are_left_out():
    data = {"string_to_param": {"*": torch.ones(2, 768)}, "sd_checkpoint": "\ud800", "textinv.base_model": "a\udfff"}
    assert read({**data, "textinv.\ud800": "b", "textinv.template": "\U0001f600"}).metadata == {
        "textinv.template": "\U0001f600"
    }


@pytest.mark.parametrize("key", ["__metadata__", "bundle_emb.cat.clip_l"])
def test_keys_that_mean_something_else_in_a_safetensors_are_no_encoders(key):
    with pytest.raises(UserError, match="which is no text encoder"):
        read({"string_to_param": {"*": torch.ones(2, 768)}, "textinv.encoder": key})


def test_of_several_encoders_there_are_vectors_only():
    vectors = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    data = to_data(Embedding("cat", vectors, 7, {"textinv.base_model": "abc"}), "cat.pt")
    assert data.keys() == vectors.keys()  # A1111 calls `.detach()` on whatever else there is


def test_encoders_nobody_knows_are_refused_rather_than_lost():
    embedding = Embedding("cat", {"clip_l": torch.ones(1, 768), "to_come": torch.ones(1, 768)})
    with pytest.raises(UserError, match=r"'cat.pt' cannot be written.*for to_come\. Write \.safetensors"):
        to_data(embedding, "cat.pt")


def test_reads_what_a1111_writes():
    rows = torch.randn(3, 768, requires_grad=True)
    after = read(
        {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": rows},
            "name": "cat-500",
            "step": 499,
            "sd_checkpoint": "81761151",
            "sd_checkpoint_name": "v1-5-pruned",
        }
    )
    assert (after.name, after.step) == ("cat", 499)
    assert after.metadata == {"textinv.sd_checkpoint": "81761151", "textinv.sd_checkpoint_name": "v1-5-pruned"}
    assert torch.equal(after.vectors["clip_l"], rows.detach())
    assert not after.vectors["clip_l"].requires_grad


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ({"<cat>": torch.ones(768)}, {"clip_l"}),  # diffusers
        ({"emb_params": torch.ones(4, 1024)}, {"clip_h"}),  # kohya
        ({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)}, {"clip_l", "clip_g"}),  # SDXL
        ({"clip_l": torch.ones(1, 96)}, {"clip_l"}),  # an encoder's key needs no width
        ({"<cat>": torch.ones(1, 1280), "note": "a cat", 3: None}, {"clip_g"}),
        ({"string_to_param": {"*": torch.ones(1, 4096, dtype=torch.float16)}, "textinv.encoder": "llama"}, {"llama"}),
        ({"string_to_param": {"clip_l": torch.ones(1, 1280)}, "textinv.encoder": 5}, {"clip_l"}),
        ({"clip_l": torch.ones(1, 768), "t5": torch.ones(1, 4096)}, {"clip_l", "t5xxl"}),  # OneTrainer
        ([{"<cat>": torch.ones(1, 768)}, {"<cat>": torch.ones(1, 1280), "step": 7}], {"clip_l", "clip_g"}),
    ],
)
def test_other_dictionaries(data, keys):
    after = read(data)
    assert after.vectors.keys() == keys
    assert all(rows.ndim == 2 and rows.dtype == torch.float32 for rows in after.vectors.values())
    assert (after.step, after.metadata) == (None, {})


@pytest.mark.parametrize("step", [True, -1, 1.5, "7", 10**30, None])
def test_a_step_that_is_none_is_not_known(step):
    assert read({"string_to_param": {"*": torch.ones(1, 768)}, "step": step}).step is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([torch.ones(1, 768)], "it holds a list"),
        ([{"a": torch.ones(1, 768)}, {"b": torch.ones(1, 768)}], "it holds a list"),
        ([{"a": torch.ones(1, 77)}, {"b": torch.tensor(1.0)}, {}, 3], "it holds a list"),
        (torch.ones(1, 768), "it holds a Tensor"),
        ({}, "no vectors"),
        ({320: (1, 2), "step": 7}, "no vectors"),  # a hypernetwork
        ({"string_to_param": {"*": torch.ones(1, 768), "+": torch.ones(1, 768)}}, "'string_to_param' is not one"),
        ({"string_to_param": {}}, "'string_to_param' is not one"),
        ({"string_to_param": [torch.ones(1, 768)]}, "'string_to_param' is not one"),
        ({"string_to_param": {"*": "vectors"}}, "no vectors"),
        ({"a": torch.ones(1, 768), "b": torch.ones(1, 768)}, "2 tensors"),
        ({"*": torch.ones(1, 77)}, "width 77"),
        ({"*": torch.ones(1, 768, dtype=torch.int64)}, "torch.int64"),
        ({"*": torch.full((1, 768), float("nan"))}, "not finite"),
        ({"*": torch.ones(1).expand(10**9, 768)}, "its tensors would take 2929688 MiB, and 64 are the most"),
    ],
)
def test_other_contents_are_refused(data, says):
    with pytest.raises(UserError, match="cat") as error:
        read(data)
    assert says in str(error.value)
