"""The small SDXL trains with both text encoders, and its fixed losses are of the same noise."""

import pytest

pytest.importorskip("diffusers")
import torch

from benchmarks import fixed_loss
from benchmarks.learning import of_preset
from textinv_core.training.examples import Example


def test_losses_begin_alike_and_change(tmp_path, monkeypatch):
    monkeypatch.setattr(fixed_loss, "LOOKS", (0, 4, 8))
    host = fixed_loss.small_sdxl(tmp_path)
    assert host.is_sdxl and host.widths == {"clip_l": 64, "clip_g": 96}
    examples = [Example(torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(i))) for i in range(2)]
    usual, fast = (fixed_loss.fixed_losses(host, examples, of_preset(name), 0) for name in ("subject", "fast"))
    assert usual[0] == fast[0]
    assert len({*usual, *fast}) == 5
