"""Generating latents."""

from typing import Any

from torch import Tensor


def fix_empty_latent_channels(model: Any, latent_image: Tensor) -> Tensor: ...


def prepare_noise(latent_image: Tensor, seed: int) -> Tensor: ...


def sample(
    model: Any,
    noise: Tensor,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: Tensor,
    disable_pbar: bool = False,
    seed: int | None = None,
) -> Tensor: ...
