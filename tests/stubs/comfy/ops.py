"""Layers whose weights are cast as they are used."""

from typing import Any

import torch


def cast_bias_weight(
    s: torch.nn.Module,
    input: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    bias_dtype: torch.dtype | None = None,
) -> tuple[Any, ...]: ...
