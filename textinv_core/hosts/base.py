"""What a model must offer so that embeddings can be trained on it, and what all hosts refuse."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..embedding import Embedding
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


def check_widths(embedding: Embedding, widths: Mapping[str, int], what: str, encoder: str) -> None:
    """Raise ValueError unless `embedding` has vectors of the right width for every encoder key in `widths`.

    what, encoder: for the message, what it does not fit ("CLIP", "model"), and the class of the text encoder.
    """
    if all(key in embedding.vectors and embedding.vectors[key].shape[1] == width for key, width in widths.items()):
        return
    raise ValueError(
        f"The embedding {embedding.name!r} does not fit this {what}: it has {embedding.shapes}, and the text encoder "
        f"({encoder}) takes vectors of width {', '.join(f'{width} for {key}' for key, width in widths.items())}. "
        f"Use it with the kind of model it was made for, or create it with this {what}."
    )


def check_unweighted(text: str, weights: Sequence[float]) -> None:
    """Raise ValueError if the words of an init text have weights, which vectors cannot hold."""
    if any(weight != 1.0 for weight in weights):
        raise ValueError(
            f"The init text {text!r} gives some words a weight. An embedding cannot hold weights; take the "
            r"brackets out, or write \( and \) where they belong to the text."
        )
