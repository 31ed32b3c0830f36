"""What was tried to learn sooner and is not in the core, as changes to a training while it lasts.

Each is a context manager that puts something of `textinv_core.training.training`, or of a lesson's start, in another's
place. None of them knows how to go on with a training that was stopped.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Generator, Tensor

from benchmarks.toyworld.models import TOKENS
from textinv_core.embedding import Embedding
from textinv_core.hosts.base import TrainableModel
from textinv_core.hosts.diffusers import PipelineHost
from textinv_core.training import training
from textinv_core.training.objective import draw_noise, prediction_losses, timestep_range
from textinv_core.training.optimizers import Turning

GOLDEN = (math.sqrt(5) - 1) / 2
Noise = tuple[Tensor, Tensor]


def _tangent(vector: Tensor, gradient: Tensor) -> Tensor:
    unit = vector / vector.norm()
    return gradient - (gradient @ unit) * unit


class _Changed(Turning):
    """`Turning` with gradients that `changed` makes of those of all vectors of a step."""

    def __init__(self, params: Iterable[Tensor], lr: float):
        super().__init__(params, lr)

    def changed(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        vectors = [vector for group in self.param_groups for vector in group["params"] if vector.grad is not None]
        for vector, gradient in zip(vectors, self.changed(vectors), strict=True):
            vector.grad = gradient
        super().step()


class Momentum(_Changed):
    """A running mean of gradients, half of it the last one's."""

    def changed(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        for vector in vectors:
            tangent = _tangent(vector, vector.grad)
            mean = self.state[vector].setdefault("mean", torch.zeros_like(vector))
            mean.mul_(0.5).add_(0.5 * tangent)
        return [self.state[vector]["mean"] for vector in vectors]


class ByVocabulary(_Changed):
    """Gradients times the covariance of the vocabulary's vectors, or its root: only where words differ is there much to
    tell. covariance: [dim, dim]."""

    covariance: Tensor

    def changed(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        return [self.covariance @ vector.grad for vector in vectors]


class OneAngle(Turning):
    """Vectors share their angles by the lengths of their gradients: the mean square is the learning rate's."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        [group] = self.param_groups
        rate, vectors = group["lr"], group["params"]
        lengths = torch.stack([_tangent(vector, vector.grad).norm() for vector in vectors])
        shares = lengths / lengths.square().mean().sqrt()
        gradients = [vector.grad for vector in vectors]
        for vector in vectors:
            vector.grad = None
        for vector, gradient, share in zip(vectors, gradients, shares, strict=True):
            vector.grad, group["lr"] = gradient, rate * float(share)
            super().step()
            vector.grad = None
        group["lr"] = rate


@contextmanager
def with_optimizer(kind: Callable[[Iterable[Tensor], float], Any]) -> Iterator[None]:
    with patch.object(training, "optimizer", lambda _, rows, rate: kind(rows, rate)):
        yield


@contextmanager
def by_vocabulary(host: PipelineHost, power: float) -> Iterator[None]:
    [encoder] = host.encoders.values()
    words = encoder.vectors(range(encoder.table.weight.shape[0]))
    values, directions = torch.linalg.eigh(torch.cov(words.T))
    with torch.inference_mode(False):
        scaled = directions @ torch.diag((values.clamp(min=0) / values.max()) ** power) @ directions.T
        kind = type("_", (ByVocabulary,), {"covariance": scaled.clone()})
    with with_optimizer(kind):
        yield


@contextmanager
def with_noise(change: Callable[[Noise, int, int, int, int], Noise]) -> Iterator[None]:
    """change: (noise and timesteps of a batch, the batch's number, pictures in it, first timestep, one behind the last)
    -> others."""
    number = 0

    def drawn(shape: Sequence[int], timesteps: int, generator: Generator, low: int = 0, high: int = 1000) -> Noise:
        nonlocal number
        made = draw_noise(shape, timesteps, generator, low, high)
        number += 1
        return change(made, number - 1, shape[0], *timestep_range(timesteps, low, high))

    with patch.object(training, "draw_noise", drawn):
        yield


def even(made: Noise, number: int, pictures: int, first: int, end: int) -> Noise:
    """Timesteps that leave no gaps, within a step and from one to the next: multiples of the golden ratio (Weyl), the
    same for every seed."""
    places = (number * pictures + torch.arange(pictures)) * GOLDEN % 1
    return made[0], first + (places * (end - first)).long()


def falling(steps: int) -> Callable[..., Noise]:
    """From the noisiest levels to the least noisy within so many steps, each from three tenths of the range."""

    def change(made: Noise, number: int, pictures: int, first: int, end: int) -> Noise:
        noise, t = made
        width = end - first
        shift = 0.7 * max(0.0, 1 - number / steps) * width
        return noise, first + (shift + 0.3 * (t - first)).long()

    return change


@contextmanager
def with_losses(of: Callable[..., Tensor]) -> Iterator[None]:
    with patch.object(training, "prediction_losses", of):
        yield


def opposite(
    model: TrainableModel, latents: Tensor, noise: Tensor, t: Tensor, conditions: Sequence[Any], *more: Any
) -> Tensor:
    """Antithetic: every other picture is the one before it once more, at its timestep, with its noise turned round."""
    first = [i - i % 2 for i in range(len(latents))]
    signs = torch.tensor([1.0, -1.0]).repeat(len(first))[: len(first)].view(-1, *[1] * (noise.ndim - 1))
    told = [conditions[i] for i in first]
    return prediction_losses(model, latents[first], signs * noise[first], t[first], told, *more)


def alike(*arguments: Any) -> Tensor:
    """Each picture's loss divided by its root, so that those with much noise do not count for less."""
    found = prediction_losses(*arguments)
    return found / found.detach().sqrt()


@contextmanager
def at_the_output(host: PipelineHost) -> Iterator[None]:
    """Embeddings begin as what the text encoder makes of the init text, with the length of words:
    Cross-Initialization (Pang et al. 2023, https://arxiv.org/abs/2312.15905)."""
    create, pipe = host.create_embedding, host.pipe

    def created(name: str, init_text: str, vectors: int) -> Embedding:
        start = create(name, init_text, vectors)
        tokens = pipe.tokenizer([init_text], return_tensors="pt", padding="max_length", max_length=TOKENS)
        with torch.no_grad():
            made = pipe.text_encoder(tokens.input_ids)[0][0, 1]  # behind the start token
        [(key, rows)] = start.vectors.items()
        return replace(start, vectors={key: (made / made.norm() * rows.norm(dim=1, keepdim=True)).float()})

    with patch.object(host, "create_embedding", created):
        yield


LEVERS: dict[str, Callable[[PipelineHost], AbstractContextManager[None]]] = {
    "momentum": lambda host: with_optimizer(Momentum),
    "angles shared by gradients": lambda host: with_optimizer(OneAngle),
    "gradients by the vocabulary": lambda host: by_vocabulary(host, 1.0),
    "gradients by its root": lambda host: by_vocabulary(host, 0.5),
    "opposite noise": lambda host: with_losses(opposite),
    "even timesteps": lambda host: with_noise(even),
    "falling timesteps": lambda host: with_noise(falling(32)),
    "pictures alike": lambda host: with_losses(alike),
    "the text encoder's output": at_the_output,
}
