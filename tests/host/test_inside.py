"""What can only be seen from inside the host's process: gradients, flags, random state, weights."""

import pytest


def test_stubs_are_like_the_host(inside):
    assert inside("stub_drift.py") == []


@pytest.mark.parametrize("checkpoint", ["sd15", "sd2v"])
def test_training_inside(inside, checkpoints, checkpoint):
    found = inside("training.py", checkpoints / f"{checkpoint}.safetensors", 16)
    failed = [what for what, value in found.items() if value is False]
    assert not failed
    assert found["loss after"] < 0.95 * found["loss before"]
    assert found["gradient error"] < 1e-5
    assert found["bf16"] > 0.99
    assert found["fp16"] > 0.999
    assert found["slope"] == pytest.approx(1, abs=0.05)
    assert found["batch error"] < 1e-4
    assert found["captions matter"] > 0.01
    assert found["encoded together"] < 1e-4
    assert found["gradient, encoded together"] < 1e-3
    assert found["encoder runs"] == [2, 5]  # the windows of four prompts at once, and the empty one for weights
    assert found["windows"] == [77, 77, 154, 77]


def test_names_in_prompts_mean_the_same_everywhere(inside, checkpoints):
    """Applied, saved, and as `names_embedding` and `render` take the host's parser to be."""
    assert inside("prompts.py", checkpoints / "sd15.safetensors") == []


def test_a_family_nothing_was_written_for(inside):
    """SD3, small: flow, a transformer, three text encoders; all of it through the host's own code."""
    found = inside("flow.py")
    assert found["widths"] == {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096}
    assert found["learnt"] == {"clip_l": True, "clip_g": True, "t5xxl": True}
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert found["velocity"] == 3.0  # noise - latent
