"""What is the same for all of the host's families: how one is put together small, and filled."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor

CPU = torch.device("cpu")


def fill(tensors: Iterable[Tensor], seed: int = 0) -> None:
    """Random weights that keep signals about as large as they are; the host leaves its own uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.0
        with torch.no_grad():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + (tensor.ndim == 1))


def small_model(config: Any, **more: Any) -> comfy.model_patcher.ModelPatcher:
    """A MODEL of one of `comfy.supported_models`' classes, given a small `unet_config`; float32 and filled.

    more: names of buffers to fill besides the parameters, as `fill=("pos_embed",)`.
    """
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=CPU)
    buffers = [dict(model.diffusion_model.named_buffers())[name] for name in more.get("fill", ())]
    fill([*buffers, *model.parameters()])
    return comfy.model_patcher.ModelPatcher(model, comfy.model_management.get_torch_device(), CPU)


def small_clip(tokenizer: Any, clip: Any, sizes: Mapping[str, Any], tokenizer_data: Mapping[str, Any] | None = None):
    """A CLIP of the host's tokenizer and text encoder classes, made small by `sizes`: `<model name>_model_config` and
    whatever else the host's `model_options` take."""
    target = comfy.supported_models_base.ClipTarget(tokenizer, clip)
    options = {"dtype": torch.float32, **sizes}
    made = comfy.sd.CLIP(
        target, embedding_directory=[], tokenizer_data=dict(tokenizer_data or {}), model_options=options
    )
    fill(made.cond_stage_model.parameters())
    return made


@dataclass(frozen=True)
class Family:
    """One of the host's families.

    name: what the README calls it. model, clip: make it. latent: the shape of a small picture's latent, [C, ..., h, w].
    keys: of the encoders that can take an embedding. read: those of them whose stock tokenizer reads `embedding:<name>`
    out of a prompt.
    """

    name: str
    model: Callable[[], comfy.model_patcher.ModelPatcher]
    clip: Callable[[], comfy.sd.CLIP]
    latent: tuple[int, ...]
    keys: tuple[str, ...]
    read: tuple[str, ...] = field(default=())
