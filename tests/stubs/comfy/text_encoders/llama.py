"""Language models as text encoders."""

from typing import Any

import torch


class TransformerBlock(torch.nn.Module):
    def __init__(self, config: Any, index: int): ...


class Llama2_(torch.nn.Module):
    layers: torch.nn.ModuleList

    def __init__(self, config: Any): ...
