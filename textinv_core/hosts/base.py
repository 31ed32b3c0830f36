"""What a model must offer so that embeddings can be trained on it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..noise import NoiseSchedule

# (encoder key, occurrence in the prompt counted from 0) -> the vectors [n, dim] to put there.
Lookup = Callable[[str, int], Tensor]


class TrainableModel(Protocol):
    """A loaded model that gradients can pass through, from its prediction back to an embedding's vectors."""

    device: torch.device
    dtype: torch.dtype  # what the diffusion model computes in
    noise_schedule: NoiseSchedule

    def condition(self, prompt: str, name: str, lookup: Lookup, latent: Tensor) -> Any:
        """Encode one prompt, with what `lookup` gives wherever it says `embedding:<name>`.

        latent: [C, h, w], the picture the prompt is for; some models condition on its size.
        What comes back is the host's own and is only ever handed to `predict`.
        """
        ...

    def predict(self, noisy: Tensor, t: Tensor, conditions: Sequence[Any]) -> Tensor:
        """The model's raw prediction [B, C, h, w] for noisy latents at timesteps t, int64 [B], one condition each."""
        ...

    def checkpoint_activations(self) -> None:
        """From now on keep less for the backward pass, and compute it again there."""
        ...
