"""A model with what nodes hang on it."""

from typing import Any

import torch


class ModelPatcher:
    model: Any
    model_options: dict[str, Any]
    patches: dict[str, Any]
    weight_wrapper_patches: dict[str, Any]
    object_patches: dict[str, Any]
    object_patches_backup: dict[str, Any]
    backup: dict[str, Any]
    backup_buffers: dict[str, torch.Tensor]
    hook_backup: dict[str, Any]
    forced_hooks: Any
    injections: dict[str, Any]
    callbacks: dict[str, Any]
    wrappers: dict[str, Any]

    def get_model_object(self, name: str) -> Any: ...

    def model_dtype(self) -> torch.dtype | None: ...
