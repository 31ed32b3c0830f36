"""What training makes small: the error of the model's prediction for noised latents, in its own type.

The one loss there is, for batches that are learnt from and for the fixed loss alike.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ..devices import upload
from ..hosts.base import TrainableModel

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, section 4


def draw_noise(
    shape: Sequence[int], timesteps: int, generator: Generator, low: int = 0, high: int = 1000
) -> tuple[Tensor, Tensor]:
    """Noise for latents of `shape`, [B, ...], float32, and a timestep for each, int64 [B]; both on the CPU.

    timesteps, low, high: see `timestep_range`.
    """
    first, end = timestep_range(timesteps, low, high)
    t = torch.randint(first, end, (shape[0],), generator=generator)
    return torch.randn(*shape, generator=generator), t


def timestep_range(timesteps: int, low: int, high: int) -> tuple[int, int]:
    """The first timestep that is learnt from, and the one behind the last.

    timesteps: how many the model has. low, high: thousandths of these, low < high; where there is none between them,
    the one at `low` is taken.
    """
    first, end = (timesteps * thousandths // 1000 for thousandths in (low, high))
    return first, max(end, first + 1)


def prediction_losses(
    model: TrainableModel,
    latents: Tensor,
    gaussian: Tensor,
    t: Tensor,
    conditions: Sequence[Any],
    weights: Tensor | None = None,
    loss_weighting: str = "none",
) -> Tensor:
    """Mean squared error between what the model predicts for noised latents and what it should, one a sample, [B].

    latents, gaussian: float32 [B, C, ..., h, w] on the model's device. t: int64 [B] on the CPU. conditions: one a
    sample. weights: float32 [B, h, w] or None, how much each place counts. loss_weighting: `none` or `min_snr`.
    """
    schedule = model.noise_schedule
    there = upload(t, latents.device)
    predicted = model.predict(schedule.add_noise(latents, gaussian, there), there, conditions)
    error = (predicted.to(latents.dtype) - schedule.target(latents, gaussian, there)) ** 2
    if weights is not None:
        error = error * weights.reshape(len(weights), *[1] * (error.ndim - weights.ndim), *weights.shape[1:])
    per_sample = error.flatten(1).mean(1)
    if loss_weighting == "min_snr":
        weight = schedule.min_snr_weight(t, MIN_SNR_GAMMA).to(per_sample.dtype)
        per_sample = per_sample * upload(weight, per_sample.device)
    return per_sample
