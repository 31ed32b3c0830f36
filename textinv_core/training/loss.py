"""What training makes small: the error of the model's prediction, in its own type."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..hosts.base import TrainableModel

MIN_SNR_GAMMA = 5.0  # Hang et al. 2023, section 4


def prediction_loss(
    model: TrainableModel,
    latents: Tensor,
    gaussian: Tensor,
    t: Tensor,
    conditions: Sequence[Any],
    weights: Tensor | None = None,
    loss_weighting: str = "none",
) -> Tensor:
    """Mean squared error between what the model predicts for noised latents and what it should, a scalar.

    latents, gaussian: float32 [B, C, h, w] on the model's device. t: int64 [B]. conditions: one a sample.
    weights: float32 [B, 1, h, w] or None, how much each place counts. loss_weighting: `none` or `min_snr`.
    """
    schedule = model.noise_schedule
    predicted = model.predict(schedule.add_noise(latents, gaussian, t), t, conditions)
    error = (predicted.to(latents.dtype) - schedule.target(latents, gaussian, t)) ** 2
    if weights is not None:
        error = error * weights
    per_sample = error.flatten(1).mean(1)
    if loss_weighting == "min_snr":
        per_sample = per_sample * schedule.min_snr_weight(t, MIN_SNR_GAMMA).to(per_sample.dtype).to(per_sample.device)
    return torch.mean(per_sample)
