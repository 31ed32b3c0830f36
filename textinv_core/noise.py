"""How a diffusion model adds noise and what it predicts, in four coefficients per timestep."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import UserError


@dataclass(frozen=True)
class NoiseSchedule:
    """A model's noising and its prediction type, one entry per training timestep, least noise first.

        noisy    = signal * latent + noise * gaussian
        denoised = skip * noisy + out * prediction

    Every type of prediction is of the second form (k-diffusion's c_skip and c_out; Karras et al. 2022, eq. 7):
    eps, v and flow differ in the coefficients alone, so what trains on this never asks which one it is.

    signal, noise, skip, out: float64 [T], on the CPU; `out` is never zero.

    Timesteps t are int64 [B], best on the device of the latents they are for, where the coefficients then are, too.
    """

    signal: Tensor
    noise: Tensor
    skip: Tensor
    out: Tensor

    def __post_init__(self):
        coefficients = torch.stack([self.signal, self.noise, self.skip, self.out])
        if not torch.isfinite(coefficients).all() or (self.out == 0).any():
            raise UserError("This model's noise schedule cannot be trained on: it is not finite, or ignores its input.")

    def __len__(self) -> int:
        return len(self.signal)

    @cached_property
    def _coefficients(self) -> dict[str, Tensor]:
        """What latent, noise and prediction are multiplied by, float64 [T]."""
        return {
            "signal": self.signal,
            "noise": self.noise,
            "skip": self.skip,
            "out": self.out,
            # Combined in double precision, so that an eps model's target is exactly the noise.
            "latent in target": (1 - self.skip * self.signal) / self.out,
            "noise in target": -self.skip * self.noise / self.out,
        }

    @cached_property
    def _on_device(self) -> dict[tuple[str, torch.device, torch.dtype], Tensor]:
        return {}

    def _at(self, t: Tensor, name: str, like: Tensor) -> Tensor:
        """A coefficient at timesteps t, as [B, 1, 1, ...] with the type and device of `like` [B, ...]."""
        place = name, like.device, like.dtype
        if place not in self._on_device:
            with torch.inference_mode(False):  # it will be used by autograd, whoever asks first
                # The type first: some devices know no float64.
                self._on_device[place] = self._coefficients[name].to(like.dtype).to(like.device)
        return self._on_device[place][t.to(like.device)].reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, latent: Tensor, gaussian: Tensor, t: Tensor) -> Tensor:
        """The noisy latents [B, ...] the model sees at timesteps t."""
        return self._at(t, "signal", latent) * latent + self._at(t, "noise", latent) * gaussian

    def target(self, latent: Tensor, gaussian: Tensor, t: Tensor) -> Tensor:
        """The prediction [B, ...] that would denoise perfectly, of the model's own type.

        It solves `denoised == latent`: for an eps model this is exactly `gaussian`.
        """
        return self._at(t, "latent in target", latent) * latent + self._at(t, "noise in target", latent) * gaussian

    def prediction(self, denoised: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The prediction behind `denoised` [B, ...], for hosts that only give the latter."""
        return (denoised - self._at(t, "skip", noisy) * noisy) / self._at(t, "out", noisy)

    def min_snr_weight(self, t: Tensor, gamma: float) -> Tensor:
        """Loss weights, float64 [B], that cap each timestep's pull at a signal-to-noise ratio of `gamma`; t on the CPU.

        Hang et al. 2023, https://arxiv.org/abs/2303.09556: min(SNR, gamma) for an error in the denoised latent,
        which is `out` times the error in the prediction. Gives min(SNR, gamma) / SNR for eps models and
        min(SNR, gamma) / (SNR + 1) for v models.
        """
        snr = (self.signal[t] / self.noise[t]) ** 2
        return snr.clamp(max=gamma) * self.out[t] ** 2
