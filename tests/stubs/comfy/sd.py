"""What loaders return besides models."""

from typing import Any

import torch

from comfy.model_patcher import ModelPatcher


class CLIP:
    patcher: ModelPatcher
    tokenizer: Any
    tokenizer_options: dict[str, Any]
    layer_idx: int | None
    use_clip_schedule: bool
    apply_hooks_to_conds: Any


class VAE:
    patcher: ModelPatcher
    vae_dtype: torch.dtype
