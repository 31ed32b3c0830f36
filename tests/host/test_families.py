"""Every family the host can condition with an embedding: made small of its own classes, and trained on."""

import pytest

from tests.rig import version
from textinv_core.formats.tensors import ENCODER_KEYS

SLOPE = pytest.approx(1, abs=0.1)


@pytest.fixture(scope="module", autouse=True)
def _new_enough(host):
    if version(host) < "0.33":
        pytest.skip("the small families are made of the classes of ComfyUI 0.33")


def wrong_of(found):
    """What is not as it must be of a family that can be trained on."""
    assert set(found.get("keys", ())) <= ENCODER_KEYS  # else files of other programs would not be read
    must_be = {
        "slope": SLOPE,
        "moved": found.get("keys"),
        "applied": True,
        "checkpointed": pytest.approx(0, abs=1e-4),
        "changed": [],
        "file": None if found.get("unread") or found.get("crashes") else 0.0,
    }
    return {name: found.get(name) for name, value in must_be.items() if found.get(name) != value}


@pytest.fixture(scope="module")
def found(inside):
    return inside("families.py")


def test_every_family_but_those_that_are_refused_can_be_trained_on(found):
    assert len(found) >= 46
    wrong = {name: wrong_of(each) for name, each in found.items() if "refused" not in each}
    assert {name: each for name, each in wrong.items() if each} == {}


def test_what_cannot_be_trained_on_is_refused_with_the_reason(found):
    refused = {name: each["refused"] for name, each in found.items() if "refused" in each}
    assert refused.keys() == {"LongCat", "HiDream-O1", "Lens", "MiniMax-H3"}
    assert "does not ask for the embeddings" in refused["LongCat"]
    assert "pictures and sound" in refused["MiniMax-H3"]


def test_encoders_have_the_order_in_which_states_of_runs_have_their_tensors(found):
    assert found["SDXL"]["order"] == ["clip_l", "clip_g"]
    assert found["Flux dev"]["order"] == ["clip_l", "t5xxl"]


def test_what_plain_prompts_do_not_find_is_known(found):
    unread = {name: each["unread"] for name, each in found.items() if each.get("unread")}
    assert unread["Qwen-Image"] == ["qwen25_7b"]
    assert unread["Kandinsky5 Image"] == ["qwen25_7b"]
    assert unread["HunyuanVideo"] == ["clip_l", "llama"]
    assert unread["Anima"] == ["qwen3_06b"]
    assert "Flux dev" not in unread and "Z-Image" not in unread


def test_beginnings_of_prompts_that_are_encoded_once_come_to_the_same(inside):
    found = inside("prefixes.py", "Z-Image", "Qwen-Image", "Flux2 dev")
    for each in found.values():
        assert each["kept"] == 4  # of two prompts of unequal length, with and without checkpoints
        assert each["off"] < 1e-5
        assert each["same again"]


def test_weights_that_stay_in_ram_are_not_kept_on_the_device_for_backward(inside):
    """A Flux of 120 MB, none of it on the simulated device: what waits there for the backward pass are activations."""
    found = inside("streamed.py")
    assert found["there"] == 0
    assert found["like a weight"] == 0
    assert 0 < found["held"] < found["weights"] / 5
    assert found["loss off"] < 1e-5 and found["gradient off"] < 1e-4
