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

    def conditions(
        self, prompts: Sequence[str], name: str, lookups: Sequence[Lookup], latents: Sequence[Tensor]
    ) -> Sequence[Any]:
        """Encode a batch of prompts, each with what its lookup gives wherever it says `embedding:<name>`.

        latents: [C, h, w] each, the pictures the prompts are for; some models condition on their size.
        What comes back, one a prompt, is the host's own and is only ever handed to `predict`.
        """
        ...

    def predict(self, noisy: Tensor, t: Tensor, conditions: Sequence[Any]) -> Tensor:
        """The model's raw prediction [B, C, h, w] for noisy latents at timesteps t, int64 [B], one condition each."""
        ...

    def checkpoint_activations(self) -> None:
        """From now on keep less for the backward pass, and compute it again there."""
        ...
