"""How a diffusion model adds noise and what it predicts, in four coefficients per timestep."""

from dataclasses import dataclass

import torch
from torch import Tensor


def _expand(values: Tensor, like: Tensor) -> Tensor:
    """`values` [B] as [B, 1, 1, ...] with the type and device of `like` [B, ...]."""
    # The type first: some devices know no float64.
    return values.to(like.dtype).to(like.device).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class NoiseSchedule:
    """A model's noising and its prediction type, one entry per training timestep, least noise first.

        noisy    = signal * latent + noise * gaussian
        denoised = skip * noisy + out * prediction

    Every type of prediction is of the second form (k-diffusion's c_skip and c_out; Karras et al. 2022, eq. 7):
    eps, v and flow differ in the coefficients alone, so what trains on this never asks which one it is.

    signal, noise, skip, out: float64 [T], on the CPU; `out` is never zero.
    """

    signal: Tensor
    noise: Tensor
    skip: Tensor
    out: Tensor

    def __post_init__(self):
        coefficients = torch.stack([self.signal, self.noise, self.skip, self.out])
        if not torch.isfinite(coefficients).all() or (self.out == 0).any():
            raise ValueError(
                "This model's noise schedule cannot be trained on: it is not finite, or ignores its input."
            )

    def __len__(self) -> int:
        return len(self.signal)

    def add_noise(self, latent: Tensor, gaussian: Tensor, t: Tensor) -> Tensor:
        """The noisy latents [B, ...] the model sees at timesteps t, int64 [B]."""
        return _expand(self.signal[t], latent) * latent + _expand(self.noise[t], latent) * gaussian

    def target(self, latent: Tensor, gaussian: Tensor, t: Tensor) -> Tensor:
        """The prediction [B, ...] that would denoise perfectly, of the model's own type.

        It solves `denoised == latent`, with the coefficients combined in float64 first: for an eps model
        this is exactly `gaussian`.
        """
        of_latent = (1 - self.skip[t] * self.signal[t]) / self.out[t]
        of_noise = -self.skip[t] * self.noise[t] / self.out[t]
        return _expand(of_latent, latent) * latent + _expand(of_noise, latent) * gaussian

    def prediction(self, denoised: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The prediction behind `denoised` [B, ...], for hosts that only give the latter."""
        return (denoised - _expand(self.skip[t], noisy) * noisy) / _expand(self.out[t], noisy)

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Loss weights, float64 [B], that cap each timestep's pull at a signal-to-noise ratio of `gamma`.

        Hang et al. 2023, https://arxiv.org/abs/2303.09556: min(SNR, gamma) for an error in the denoised latent,
        which is `out` times the error in the prediction. Gives min(SNR, gamma) / SNR for eps models and
        min(SNR, gamma) / (SNR + 1) for v models.
        """
        snr = (self.signal[t] / self.noise[t]) ** 2
        return snr.clamp(max=gamma) * self.out[t] ** 2
