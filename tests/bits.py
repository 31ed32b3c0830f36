"""Trainings in `recorded/`: what they gave then they give now, to the bit.

`TEXTINV_RECORD=1 python -m pytest -k bits` records them anew. Rounding differs between versions of torch and kinds of
processor; on others than the recording's, values may differ by a thousandth.
"""

import os
import platform
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).with_name("recorded")


def machine() -> dict[str, str]:
    """What rounding depends on."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return {"torch": torch.__version__, "processor": found[1] if found else platform.processor()}


def differences(name: str, found: dict[str, Tensor], where: dict[str, str] | None = None) -> list[str]:
    """The names of tensors in `found` that are not those recorded as `name`.

    where: `machine()` of the process that made them, if it was another one.
    """
    where = where or machine()
    path = FOLDER / f"{name}.safetensors"
    if os.environ.get("TEXTINV_RECORD"):
        save_file({key: value.contiguous() for key, value in found.items()}, path, where)
    with safe_open(path, "pt") as file:
        alike = file.metadata() == where
    recorded = load_file(path)
    if recorded.keys() != found.keys():
        return sorted(recorded.keys() ^ found.keys())

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.equal(a, b) if alike else torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))

    return [key for key in recorded if not same(found[key], recorded[key])]
