"""Names of precisions, and the types they are."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from textinv_core.hosts.precision import PRECISIONS, dtype_of


def test_every_precision_is_a_type_but_for_the_hosts_own_choice():
    types = {name: dtype_of(name) for name in PRECISIONS if name != "auto"}
    assert types == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    with pytest.raises(KeyError):
        dtype_of("auto")


def test_their_names_need_no_torch():
    code = "import sys, textinv_core.hosts.precision; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], timeout=60).returncode == 0
