"""LoRAs that are computed beside the weights."""

from typing import Any

import torch


class BypassForwardHook:
    module: torch.nn.Module
    adapter: Any
    multiplier: float


class BypassInjectionManager:
    hooks: list[BypassForwardHook]
