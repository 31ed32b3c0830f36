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


def check(found):
    """All families in `found`, at once: one that fails hides no other."""
    wrong = {name: wrong_of(each) for name, each in found.items() if "refused" not in each}
    assert {name: each for name, each in wrong.items() if each} == {}


@pytest.fixture(scope="module")
def quick(inside):
    return inside("families.py", "quick")


def test_the_families_that_most_people_use_can_be_trained_on(quick):
    assert len(quick) >= 20
    check(quick)


def test_those_whose_tokenizers_ask_for_no_names_are_refused(quick):
    assert [name for name, found in quick.items() if "refused" in found] == ["LongCat"]
    assert "does not ask for the embeddings" in quick["LongCat"]["refused"]


def test_encoders_have_the_order_in_which_states_of_runs_have_their_tensors(quick):
    assert quick["SDXL"]["order"] == ["clip_l", "clip_g"]
    assert quick["Flux dev"]["order"] == ["clip_l", "t5xxl"]


def test_what_plain_prompts_do_not_find_is_known(quick):
    unread = {name: found["unread"] for name, found in quick.items() if found.get("unread")}
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


@pytest.mark.long
def test_all_families(inside):
    found = inside("families.py", timeout=3600)
    assert len(found) >= 46
    assert {name for name, each in found.items() if "refused" in each} == {
        "LongCat",
        "HiDream-O1",
        "Lens",
        "MiniMax-H3",
    }
    check(found)
