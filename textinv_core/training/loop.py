"""The training loop: a generator of steps, so that whoever runs it decides what to do between them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import count, islice

import numpy as np
import torch
from torch import Generator, Tensor

from ..dataset import Example, batches_per_epoch, epoch
from ..embedding import Embedding
from ..hosts.base import Lookup, TrainableModel
from ..prompts import names_embedding, render
from ..schedule import LearningRateSchedule
from ..shuffle import ShuffleConfig
from .loss import prediction_loss
from .parallel import ALONE, Processes
from .settings import TrainSettings

ZERO_GRADIENT_STEPS = 20
# What is left to chance: the order of pictures, the template lines, noise and timesteps, the order of vectors.
STREAMS = ("order", "prompts", "noise", "shuffle")


class TrainingError(RuntimeError):
    """The training cannot go on, or not start; the message says why and what to try."""


@dataclass(frozen=True)
class Progress:
    """Where a training stands after an optimizer step, and with which one it will end.

    loss: mean over the step's batches.

    Holds a copy of the step's vectors, some kilobytes, on the CPU: what happens to the model's device cannot reach it.
    """

    step: int
    last_step: int
    loss: float
    learning_rate: float
    _embedding: Embedding
    _vectors: dict[str, Tensor]

    def embedding(self) -> Embedding:
        """The embedding as it was after this step, whatever the training has done since."""
        return Embedding(self._embedding.name, self._vectors, self.step, self._embedding.metadata)


def chance(seed: int, stream: str, *place: int) -> Generator:
    """A generator for one of STREAMS at one place of a training: an epoch, or a batch and what is in it.

    None disturbs another: turning shuffling on changes no noise, a host may ask for orders in any sequence, a training
    that goes on from some step draws there what it would have drawn without a stop, and processes can run different
    batches of it.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *place))
    return Generator().manual_seed(int(sequence.generate_state(1)[0]))


@dataclass(frozen=True)
class Batch:
    """The pictures and prompts of one batch, and its number, counted from 0 over all steps of the embedding."""

    number: int
    examples: list[Example]
    prompts: list[str]


def _batches(examples: Sequence[Example], name: str, settings: TrainSettings, first: int) -> Iterator[Batch]:
    """From batch number `first` on, epoch after epoch, without end."""
    per_epoch = batches_per_epoch(examples, settings.batch_size)
    order: list[list[int]] = []
    for number in count(first):
        epoch_number, place = divmod(number, per_epoch)
        if place == 0 or not order:
            order = epoch(examples, settings.batch_size, chance(settings.seed, "order", epoch_number))
        chosen = [examples[i] for i in order[place]]
        generator = chance(settings.seed, "prompts", number)
        lines = torch.randint(len(settings.template), (len(chosen),), generator=generator).tolist()
        prompts = [render(settings.template[line], name, e.caption) for line, e in zip(lines, chosen, strict=True)]
        yield Batch(number, chosen, prompts)


def _lookup(
    vectors: dict[str, Tensor], shuffle: ShuffleConfig, settings: TrainSettings, number: int, sample: int
) -> Lookup:
    """Vectors for one sample's prompt in batch `number`. Encoders with equally many vectors share an order."""

    def look_up(key: str, occurrence: int) -> Tensor:
        n = vectors[key].shape[0]
        places = {"batch": (), "sample": (sample,), "occurrence": (sample, occurrence)}
        generator = chance(settings.seed, "shuffle", number, n, *places[shuffle.per])
        step = number // settings.gradient_accumulation + 1
        return vectors[key][shuffle.order(n, step, generator)]

    return look_up


def _batch_loss(
    model: TrainableModel,
    batch: Batch,
    name: str,
    vectors: dict[str, Tensor],
    settings: TrainSettings,
    shuffle: ShuffleConfig,
) -> Tensor:
    latents = [example.latent for example in batch.examples]
    noise = chance(settings.seed, "noise", batch.number)
    first, end = (len(model.noise_schedule) * m // 1000 for m in (settings.min_timestep, settings.max_timestep))
    t = torch.randint(first, max(end, first + 1), (len(latents),), generator=noise)
    gaussian = torch.randn(len(latents), *latents[0].shape, generator=noise)
    lookups = [_lookup(vectors, shuffle, settings, batch.number, sample) for sample in range(len(latents))]
    conditions = model.conditions(batch.prompts, name, lookups, latents)
    weights = None
    if any(e.weights is not None for e in batch.examples):
        alike = torch.ones(latents[0].shape[-2:])
        weights = torch.stack([alike if e.weights is None else e.weights for e in batch.examples])
        weights = weights[:, None].to(model.device)
    return prediction_loss(
        model,
        torch.stack(latents).to(model.device),
        gaussian.to(model.device),
        t,
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
    processes: Processes = ALONE,
) -> Iterator[Progress]:
    """Train a copy of `embedding` on `examples`, one optimizer step (AdamW, no weight decay) at a time.

    Vectors and optimizer are float32 whatever the model is. Counts on from `embedding.step`, until `settings.steps`
    or where the learning rates end. Same seed and inputs give the same bits on a CPU. A training that goes on sees the
    pictures, prompts, noise and orders it would have seen without a stop; its optimizer starts afresh, so that its
    vectors are others.

    processes: from `parallel.join`. They share the `gradient_accumulation` batches of each step, which their number
    has to divide (see `parallel.shared`), and exchange losses and gradients of the vectors; each has to be given the
    same inputs, and yields the same. With equally many threads a process (`torchrun` sets OMP_NUM_THREADS to 1) those
    are the very bits that one process would give.

    Raises ValueError for bad settings before the first step, and TrainingError when nothing names the embedding, when
    a loss or gradient is not finite, and when no gradient has reached the vectors for 20 steps. Raises ConnectionError
    when another process is lost.
    """
    if not examples:
        raise TrainingError("There are no pictures to learn from.")
    shuffle = shuffle or ShuffleConfig()
    name, start = embedding.name, embedding.step or 0
    rates = LearningRateSchedule(settings.learning_rate, settings.steps, start)
    _check_named(settings, examples, name)
    if settings.gradient_accumulation % processes.count:
        raise ValueError(
            f"{processes.count} processes cannot share {settings.gradient_accumulation} batches a step evenly; see "
            "`parallel.shared`."
        )
    batches = _batches(examples, name, settings, first=start * settings.gradient_accumulation)
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
        of_step = list(islice(batches, settings.gradient_accumulation))
        results = []
        for batch in of_step[processes.rank :: processes.count]:
            while True:
                try:
                    batch_loss = _batch_loss(model, batch, name, vectors, settings, shuffle)
                    batch_loss = batch_loss / settings.gradient_accumulation
                    found = _gradients(scaler.scale(batch_loss), vectors)
                    break
                except torch.OutOfMemoryError:
                    if checkpointed or settings.gradient_checkpointing == "off":
                        raise
                    checkpointed = True
                    model.checkpoint_activations()
            results.append(torch.cat([batch_loss.detach()[None], *(gradient.flatten() for gradient in found)]))
        # Batch by batch, so that the sum is rounded alike however many processes there are.
        total = reduce(torch.add, processes.gather(torch.stack(results)))
        loss, *gradients = total.split([1, *(rows.numel() for rows in vectors.values())])
        loss = loss.item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss of step {step} is {loss}: the training has diverged. Try a lower learning rate (now "
                f"{rate:g}), precision fp32, or another init text; check that the VAE fits the model."
            )
        for rows, gradient in zip(vectors.values(), gradients, strict=True):
            rows.grad = gradient.view_as(rows)
        scaler.unscale_(optimizer)
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        overflowed = scaler.is_enabled() and scaler.get_scale() > 1
        if not math.isfinite(norm) and not overflowed:
            raise TrainingError(
                f"The gradients of step {step} are not finite: the training has diverged. Try a lower learning rate "
                f"(now {rate:g}), gradient clipping, or precision fp32."
            )
        if norm > 0:
            without_gradient = 0
        elif any(names_embedding(prompt, name) for batch in of_step for prompt in batch.prompts):
            # Otherwise the captions had nothing to teach.
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
        # An interrupt can come in the midst of the next update, when they are those of no step.
        learnt = {key: rows.detach().to("cpu", copy=True) for key, rows in vectors.items()}
        yield Progress(step, rates.last_step, loss, rate, embedding, learnt)
