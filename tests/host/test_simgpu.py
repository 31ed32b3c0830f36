"""ComfyUI's own models trained on a device that is not the CPU; see `tests/simgpu.py`."""

import pytest

from tests.rig import PACK


@pytest.fixture(scope="module")
def trained(inside, checkpoints):
    return inside("on_simgpu.py", PACK / "textinv_core" / "toyworld", checkpoints / "sdxl.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_losses_are_those_of_the_cpu(trained, precision):
    assert trained[precision]["simgpu"] == trained[precision]["cpu"]


@pytest.mark.parametrize("model", ["fp32", "bf16", "fp16", "sdxl"])
def test_a_step_reads_once_from_the_device(trained, model):
    assert set(trained[model]["reads"]) == {1}, trained[model]["counted"]


@pytest.mark.parametrize("model", ["fp32", "bf16", "fp16", "sdxl"])
def test_nothing_we_send_is_waited_for(trained, model):
    assert trained[model]["our blocking uploads"] == 0, trained[model]["counted"]


def test_a_model_has_its_identity_wherever_its_weights_are(trained):
    before, in_part, whole, after = trained["identities"]
    assert (in_part.pop("in part"), whole.pop("in part")) == (True, False)
    assert before == in_part == whole == after
