"""The training loop: a generator of steps, so that whoever runs it decides what to do between them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from ..dataset import Example, batches
from ..embedding import Embedding
from ..hosts.base import Lookup, TrainableModel
from ..prompts import names_embedding, render
from ..schedule import LearningRateSchedule
from ..shuffle import ShuffleConfig
from .loss import prediction_loss
from .settings import TrainSettings

ZERO_GRADIENT_STEPS = 20


class TrainingError(RuntimeError):
    """The training cannot go on, or not start; the message says why and what to try."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands after an optimizer step, and with which one it will end.

    loss: mean over the step's batches.
    """

    step: int
    last_step: int
    loss: float
    learning_rate: float
    _embedding: Embedding
    _vectors: dict[str, Tensor]

    def embedding(self) -> Embedding:
        """The embedding as it is now; valid until the loop goes on."""
        vectors = {key: rows.detach().to("cpu", copy=True) for key, rows in self._vectors.items()}
        return Embedding(self._embedding.name, vectors, self.step, self._embedding.metadata)


@dataclass(frozen=True)
class RandomStreams:
    """Generators that do not disturb one another: turning shuffling on changes no noise."""

    order: Generator
    prompts: Generator
    noise: Generator
    shuffle: Generator

    @classmethod
    def of(cls, seed: int) -> "RandomStreams":
        children = np.random.SeedSequence(seed).spawn(4)
        return cls(*(Generator().manual_seed(int(child.generate_state(1)[0])) for child in children))


@dataclass(frozen=True)
class Batch:
    """All that chance decided for one batch, so that it can be run twice."""

    examples: list[Example]
    prompts: list[str]
    gaussian: Tensor
    t: Tensor
    orders: "Orders"


class Orders:
    """The orders of the vectors in one batch, drawn when first asked for."""

    def __init__(self, shuffle: ShuffleConfig, step: int, generator: Generator):
        self._shuffle, self._step, self._generator = shuffle, step, generator
        self._drawn: dict[tuple[int, ...], list[int]] = {}

    def lookup(self, vectors: dict[str, Tensor], sample: int) -> Lookup:
        """Vectors for one sample's prompt. Encoders with equally many vectors share an order."""

        def look_up(key: str, occurrence: int) -> Tensor:
            n = vectors[key].shape[0]
            drawn_for = {"batch": (n,), "sample": (n, sample), "occurrence": (n, sample, occurrence)}
            place = drawn_for[self._shuffle.per]
            if place not in self._drawn:
                self._drawn[place] = self._shuffle.order(n, self._step, self._generator)
            return vectors[key][self._drawn[place]]

        return look_up


def _draw(
    model: TrainableModel,
    indices: list[int],
    examples: Sequence[Example],
    name: str,
    settings: TrainSettings,
    orders: Orders,
    streams: RandomStreams,
) -> Batch:
    chosen = [examples[i] for i in indices]
    lines = torch.randint(len(settings.template), (len(chosen),), generator=streams.prompts).tolist()
    prompts = [render(settings.template[line], name, e.caption) for line, e in zip(lines, chosen, strict=True)]
    first, end = (len(model.noise_schedule) * m // 1000 for m in (settings.min_timestep, settings.max_timestep))
    t = torch.randint(first, max(end, first + 1), (len(chosen),), generator=streams.noise)
    gaussian = torch.randn(len(chosen), *chosen[0].latent.shape, generator=streams.noise)
    return Batch(chosen, prompts, gaussian, t, orders)


def _batch_loss(
    model: TrainableModel, batch: Batch, name: str, vectors: dict[str, Tensor], settings: TrainSettings
) -> Tensor:
    latents = [example.latent for example in batch.examples]
    lookups = [batch.orders.lookup(vectors, sample) for sample in range(len(latents))]
    conditions = model.conditions(batch.prompts, name, lookups, latents)
    weights = None
    if any(e.weights is not None for e in batch.examples):
        alike = torch.ones(batch.gaussian.shape[-2:])
        weights = torch.stack([alike if e.weights is None else e.weights for e in batch.examples])
        weights = weights[:, None].to(model.device)
    return prediction_loss(
        model,
        torch.stack(latents).to(model.device),
        batch.gaussian.to(model.device),
        batch.t,
        conditions,
        weights,
        settings.loss_weighting,
    )


def _check_named(settings: TrainSettings, examples: Sequence[Example], name: str) -> None:
    prompts = (render(line, name, e.caption) for line in settings.template for e in examples)
    if not any(names_embedding(prompt, name) for prompt in prompts):
        raise TrainingError(
            f"Nothing would be learnt: no prompt of this training names the embedding, that is, contains [name] or "
            f"embedding:{name}. With the template 'none' the captions themselves must do it; otherwise choose another "
            "template."
        )


def _gradients(loss: Tensor, vectors: dict[str, Tensor]) -> Sequence[Tensor]:
    """Of `loss` with respect to each encoder's vectors; zeros where a batch's prompts do not name the embedding."""
    rows = [*vectors.values()]
    if not loss.requires_grad:
        return [torch.zeros_like(r) for r in rows]
    return torch.autograd.grad(loss, rows, allow_unused=True, materialize_grads=True)


def train(
    model: TrainableModel,
    examples: Sequence[Example],
    embedding: Embedding,
    settings: TrainSettings,
    shuffle: ShuffleConfig | None = None,
) -> Iterator[Progress]:
    """Train a copy of `embedding` on `examples`, one optimizer step (AdamW, no weight decay) at a time.

    Vectors and optimizer are float32 whatever the model is. Counts on from `embedding.step`, until `settings.steps`
    or where the learning rates end. Same seed and inputs give the same bits on a CPU.

    Raises ValueError for bad settings before the first step, and TrainingError when nothing names the embedding, when
    a loss or gradient is not finite (the vectors are then still those of the last step), and when no gradient has
    reached the vectors for 20 steps.
    """
    if not examples:
        raise TrainingError("There are no pictures to learn from.")
    shuffle = shuffle or ShuffleConfig()
    name, start = embedding.name, embedding.step or 0
    rates = LearningRateSchedule(settings.learning_rate, settings.steps, start)
    _check_named(settings, examples, name)
    streams = RandomStreams.of(settings.seed)
    order = batches(examples, settings.batch_size, streams.order)
    vectors: dict[str, Tensor] = {
        key: rows.to(model.device, torch.float32, copy=True).requires_grad_() for key, rows in embedding.vectors.items()
    }
    optimizer = torch.optim.AdamW(vectors.values(), lr=rates.rate_at(start), weight_decay=0.0)
    # Gradients of a model in half precision would vanish below its smallest number.
    scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)
    if checkpointed := settings.gradient_checkpointing == "on":
        model.checkpoint_activations()
    without_gradient = 0

    for step in range(start + 1, rates.last_step + 1):
        rate = rates.rate_at(step - 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        gradients = {key: torch.zeros_like(rows) for key, rows in vectors.items()}
        loss, prompts = 0.0, []
        for _ in range(settings.gradient_accumulation):
            orders = Orders(shuffle, step, streams.shuffle)
            batch = _draw(model, next(order), examples, name, settings, orders, streams)
            while True:
                try:
                    batch_loss = _batch_loss(model, batch, name, vectors, settings) / settings.gradient_accumulation
                    found = _gradients(scaler.scale(batch_loss), vectors)
                    break
                except torch.OutOfMemoryError:
                    if checkpointed or settings.gradient_checkpointing == "off":
                        raise
                    checkpointed = True
                    model.checkpoint_activations()
            for total, gradient in zip(gradients.values(), found, strict=True):
                total += gradient
            loss += batch_loss.item()
            prompts += batch.prompts
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss of step {step} is {loss}: the training has diverged. Try a lower learning rate (now "
                f"{rate:g}), precision fp32, or another init text; check that the VAE fits the model."
            )
        for key, rows in vectors.items():
            rows.grad = gradients[key]
        scaler.unscale_(optimizer)
        norm = float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
        overflowed = scaler.is_enabled() and scaler.get_scale() > 1
        if not math.isfinite(norm) and not overflowed:
            raise TrainingError(
                f"The gradients of step {step} are not finite: the training has diverged. Try a lower learning rate "
                f"(now {rate:g}), gradient clipping, or precision fp32."
            )
        if norm > 0:
            without_gradient = 0
        elif any(names_embedding(prompt, name) for prompt in prompts):  # else the captions had nothing to teach
            without_gradient += 1
        if without_gradient == ZERO_GRADIENT_STEPS:
            raise TrainingError(
                f"For {ZERO_GRADIENT_STEPS} steps no gradient has reached the embedding, so it does not change: this "
                "model's prediction does not depend on it. Try precision fp32 and ComfyUI without attention or "
                "speed-up options, and check that the CLIP belongs to the model."
            )
        if settings.gradient_clipping == "norm":
            torch.nn.utils.clip_grad_norm_(vectors.values(), settings.clip_at)
        elif settings.gradient_clipping == "value":
            torch.nn.utils.clip_grad_value_(vectors.values(), settings.clip_at)
        scaler.step(optimizer)
        scaler.update()
        yield Progress(step, rates.last_step, loss, rate, embedding, vectors)
