"""Trainings in the real host, recorded before the training was built anew; see `tests/bits.py`."""

from safetensors.torch import load_file

from tests.bits import differences
from tests.rig import PACK


def test_trainings_give_the_recorded_bits(inside, checkpoints, tmp_path):
    where = inside("recorded.py", PACK / "textinv_core" / "toyworld", checkpoints / "sdxl.safetensors", tmp_path)
    found = {path.stem: load_file(path) for path in tmp_path.glob("*.safetensors")}
    assert found.keys() == {"plain", "weighted", "bf16", "fp16", "sdxl"}
    wrong = {name: differences(f"comfy-{name}", tensors, where) for name, tensors in found.items()}
    assert not any(wrong.values()), wrong
