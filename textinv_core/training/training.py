"""A training in progress: one optimizer step at a time, so that whoever runs it decides what to do between them."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from threading import Event
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..devices import upload
from ..errors import TrainingError, UserError
from ..hosts.base import TrainableModel
from ..schedule import LearningRateSchedule
from .chance import chance
from .evaluation import Evaluated, Probe, can_end_early, has_learnt_enough, noise, probes, split, steps_between
from .examples import Example, batches_per_epoch, epoch
from .learnable import Address, Batch, Learnable
from .objective import draw_noise, prediction_losses
from .optimizers import check_turning, optimizer, warn_of_rates
from .parallel import ALONE, Processes
from .room import Room
from .settings import TrainSettings

log = logging.getLogger("textinv")

ZERO_GRADIENT_STEPS = 20
# Latents of up to so many bytes in all stay on the model's device; more are sent there batch by batch.
RESIDENT_LATENTS = 256 * 2**20


@dataclass(frozen=True)
class Step:
    """An optimizer step that is done, and the one that the training will end with.

    loss: mean over the step's batches, before the step. learnt: what the learnable has become, see its `snapshot`.
    """

    step: int
    last_step: int
    loss: float
    learning_rate: float
    learnt: Any

    def __str__(self) -> str:
        return f"step {self.step}/{self.last_step}, loss {self.loss:.4f}, rate {self.learning_rate:g}"


def check(
    learnable: Learnable, examples: Sequence[Example], settings: TrainSettings, processes: Processes = ALONE
) -> LearningRateSchedule:
    """The learning rates of a training, or UserError where it cannot start; looks at captions alone, not at latents.

    `Training` does it; call it also before work that would be in vain.
    """
    if not examples:
        raise TrainingError("There are no pictures to learn from.")
    learnt_from, _ = split(len(examples), settings)
    rates = LearningRateSchedule(settings.learning_rate, settings.steps, learnable.step)
    if settings.optimizer == "sphere":
        check_turning(learnable.tensors.values(), rates)
    prompts = (learnable.prompt(line, examples[i]) for line in settings.template for i in learnt_from)
    if not any(map(learnable.is_named, prompts)):
        raise TrainingError(
            f"Nothing would be learnt: no prompt of this training names the embedding, that is, contains [name] or "
            f"embedding:{learnable.name}. With the template 'none' the captions themselves must do it; otherwise "
            "choose another template."
        )
    if settings.gradient_accumulation % processes.count:
        raise UserError(
            f"{processes.count} processes cannot share {settings.gradient_accumulation} batches a step evenly; see "
            "`parallel.shared`."
        )
    return rates


class Training:
    """A learnable being trained on `examples`, one optimizer step an `advance()`.

    Its tensors and the optimizer are float32 whatever the model is, and live on the CPU: losses and gradients come
    back from the model's device together, once a step, and nothing else waits for it. Counts on from
    `learnable.step`, until `settings.steps` or where the learning rates end. Same seed and inputs give the same bits
    on a CPU. A learnable that has been trained before sees the pictures, prompts, noise and orders it would have seen
    without a stop; with `state`, of a training with the same inputs, everything goes on to the bit.

    processes: from `parallel.join`. They share the `gradient_accumulation` batches of each step, which their number
    has to divide (see `parallel.shared`), and exchange losses and gradients; each has to be given the same inputs, and
    comes to the same. With equally many threads a process (`torchrun` sets OMP_NUM_THREADS to 1) those are the very
    bits that one process would give.

    evaluations: (step, fixed loss) of each time it was taken; the first is of the start.

    Raises UserError as `check` does.
    """

    def __init__(
        self,
        model: TrainableModel,
        examples: Sequence[Example],
        learnable: Learnable,
        settings: TrainSettings,
        processes: Processes = ALONE,
        state: Mapping[str, Any] | None = None,
    ):
        self._rates = check(learnable, examples, settings, processes)
        learnt_from, held_out = split(len(examples), settings)
        if settings.batch_size > len(learnt_from) and processes.rank == 0:
            log.warning(
                f"textinv: batches of {settings.batch_size} pictures were asked for, and there are {len(learnt_from)}; "
                "each batch has all of them."
            )
        self.learnable, self.settings = learnable, settings
        self.step, self.last_step = learnable.step, self._rates.last_step
        steps = self.last_step - self.step
        if settings.early_stop != "off" and not can_end_early(settings, steps) and processes.rank == 0:
            log.warning(
                f"textinv: early_stop {settings.early_stop} will not end this training: in {steps} steps the fixed "
                "loss is taken too seldom to tell. Let it be taken more often (evaluate_every), or train longer."
            )
        if processes.rank == 0:
            warn_of_rates(settings.optimizer, self._rates, is_new=not self.step)
        self._room, self._processes = Room(model, settings), processes
        self._order: tuple[int, list[list[int]]] = -1, []
        with torch.inference_mode(False):
            self._tensors = {
                address: rows.detach().to("cpu", torch.float32, copy=True)
                for address, rows in learnable.tensors.items()
            }
            stay = sum(example.latent.nbytes for example in examples) <= RESIDENT_LATENTS
            examples = [_on(model.device, example) for example in examples] if stay else examples
        self._examples = [examples[i] for i in learnt_from]
        self._held_out = [examples[i] for i in held_out]
        self._probes: list[list[Probe]] = []
        self.batches_an_epoch = batches_per_epoch(self._examples, settings.batch_size)
        # Each row is a parameter of its own: Adam counts the steps of each, and passes over those without a gradient.
        self._rows = {address: list(tensor.unbind()) for address, tensor in self._tensors.items()}
        rows = [row for rows in self._rows.values() for row in rows]
        self._optimizer = optimizer(settings.optimizer, rows, self._rates.rate_at(self.step))
        # Gradients of a model in half precision would vanish below its smallest number.
        self._scaler = torch.amp.GradScaler("cpu", enabled=model.dtype == torch.float16)
        self._scaler.scale(torch.zeros(()))  # makes its scale, here and not on the model's device
        self._without_gradient = 0
        self._learnt = self._good = self._best = self.step, self._copy()
        self.evaluations: list[tuple[int, float]] = []
        self._is_whole, self._is_finishing, self._asked = True, False, Event()
        if state is not None:
            self._go_on(state)

    @property
    def is_over(self) -> bool:
        return self._is_finishing or self.step >= self.last_step

    @property
    def finish(self) -> Callable[[], None]:
        """Makes the training be over after the step in progress, or the next one where none is; of several processes
        in all. May be called from any thread, and does not hold what the training holds."""
        return self._asked.set

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    @property
    def model(self) -> TrainableModel:
        """What is trained on. Another one, of the same host, may take its place between steps: a `TrainableModel` is no
        good once its `Host.trainable` has been left."""
        return self._room.model

    @model.setter
    def model(self, model: TrainableModel) -> None:
        self._room.model = model

    def learnt(self) -> Any:
        """What has been learnt by the last step that is done and good; None if that is nothing."""
        step, tensors = self._learnt
        return None if step == self.learnable.step else self.learnable.snapshot(tensors, step)

    def best(self) -> Any:
        """What had been learnt when the fixed loss was lowest; None if it never was lower than before the first step,
        or if that step has turned out to be no good."""
        step, tensors = self._best
        is_good = self.learnable.step < step <= self._learnt[0]
        return self.learnable.snapshot(tensors, step) if is_good else None

    def steps(self) -> Iterator[Step]:
        """All steps that are left."""
        while not self.is_over:
            yield self.advance()

    def advance(self) -> Step:
        """Run one optimizer step. In half precision, gradients that overflow are computed again with half the scale.

        Raises TrainingError when a loss or gradient is not finite, and when none has reached the tensors for 20 steps.
        After one that is not finite, what has been learnt is what the last finite gradients were computed from. Raises
        ConnectionError when another process is lost, and whatever the host raises to interrupt.
        """
        step, settings = self.step + 1, self.settings
        rate = self._rates.rate_at(self.step)
        first = self.step * settings.gradient_accumulation
        batches = [self._batch(number) for number in range(first, first + settings.gradient_accumulation)]
        own = batches[self._processes.rank :: self._processes.count]
        sizes = [tensor.numel() for tensor in self._tensors.values()]
        norm = math.inf
        while norm == math.inf:
            results = torch.stack([self._loss_and_gradients(batch) for batch in own]).cpu()
            asked = torch.full((len(own), 1), float(self._asked.is_set()))
            # Batch by batch, so that the sum is rounded alike however many processes there are.
            total = reduce(torch.add, self._processes.gather(torch.cat([results, asked], 1)))
            loss, *gradients, asked = total.split([1, *sizes, 1])
            self._check_loss(loss.item(), f"of step {step}", rate)
            norm = self._set_gradients(gradients, f"of step {step}", rate)
            if norm == math.inf:
                # A step left out would be one of the largest of a schedule.
                self._scaler.update(self._scaler.get_scale() / 2)
        self._is_whole = False
        self._check_reached(norm, batches)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if norm > 0:  # else no prompt has named it: nothing is known of it yet
            self._good = self._learnt
        self._learnt = step, self._copy()
        self.step = step
        self._is_whole, self._is_finishing = True, bool(asked)
        return Step(step, self.last_step, loss.item(), rate, self.learnable.snapshot(self._learnt[1], step))

    def confirm(self) -> None:
        """Try what the last step has made on the next batch that names it: what has no finite loss and gradients is
        not learnt, as after `advance`, and a TrainingError is raised."""
        rate = self._rates.rate_at(self.step - 1)
        first = self.step * self.settings.gradient_accumulation
        batches = map(self._batch, range(first, first + 2 * self.batches_an_epoch))  # a whole epoch at the least
        batch = next((batch for batch in batches if any(map(self.learnable.is_named, batch.prompts))), None)
        if batch is None:
            return
        result = self._loss_and_gradients(batch).cpu()
        self._check_loss(result[0].item(), f"after step {self.step}", rate)
        self._check_gradients(float(result[1:].norm()), f"after step {self.step}", rate)

    @property
    def is_due(self) -> bool:
        """Whether the fixed loss is to be taken now: before the first step, every so many, and after the last."""
        every = steps_between(self.settings, self.last_step - self.learnable.step)
        is_its_turn = self.step == self.learnable.step or (every and self.step % every == 0) or self.is_over
        return bool(every) and is_its_turn and self.step not in [step for step, _ in self.evaluations[-1:]]

    def evaluate(self) -> Evaluated:
        """The fixed loss of what has been learnt by the last step: the mean over `evaluation.probes`, with vectors in
        stored order. The training is over if it has learnt enough by `settings.early_stop`.

        Otherwise it changes nothing, and has the same bits however many processes there are; all have to call it.
        Raises as `advance` does.
        """
        settings, processes = self.settings, self._processes
        if not self._probes:
            timesteps = len(self.model.noise_schedule)
            self._probes = probes(self.learnable, self._examples, self._held_out, settings, timesteps)
        rounds = -(-len(self._probes) // processes.count)
        with torch.no_grad():
            own = self._probes[processes.rank :: processes.count]
            losses = [functional.pad(found, (0, settings.batch_size - len(found))) for found in map(self._probed, own)]
            losses += [torch.zeros(settings.batch_size, device=self.device)] * (rounds - len(own))
        rows = processes.gather(torch.stack(losses).cpu())
        found = torch.cat([row[: len(batch)] for row, batch in zip(rows, self._probes, strict=False)])
        loss, start = float(found.double().mean()), self.learnable.step
        when = f"after step {self.step}" if self.step > start else "before the first step"
        self._check_loss(loss, when, self._rates.rate_at(max(self.step - 1, start)))
        is_best = self.step > start and all(loss < earlier for _, earlier in self.evaluations)
        self.evaluations.append((self.step, loss))
        if is_best:
            self._best = self._learnt
        self._is_finishing = self._is_finishing or self.has_learnt_enough
        return Evaluated(self.step, loss, is_best)

    @property
    def has_learnt_enough(self) -> bool:
        """Whether `settings.early_stop` ends it by the fixed losses so far."""
        return has_learnt_enough([loss for _, loss in self.evaluations], self.settings)

    def state(self) -> dict[str, Any] | None:
        """All that a training with the same inputs needs to go on to the bit, as plain tensors, numbers and text; None
        where it has diverged or nothing was learnt from it, or where Ctrl-C came in the midst of an update."""
        if not self._is_whole:
            return None
        step, tensors = self._learnt
        good_step, good = self._good
        best_step, best = self._best
        return {
            "step": step,
            "tensors": list(tensors.values()),
            "good_step": good_step,
            "good": list(good.values()),
            "best_step": best_step,
            "best": list(best.values()),
            "evaluations": list(self.evaluations),
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
            "without_gradient": self._without_gradient,
            **self._room.state(),
        }

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        for tensor, kept in zip(self._tensors.values(), state["tensors"], strict=True):
            tensor.copy_(kept)
        self._learnt = self.step, self._copy()
        self._good = state["good_step"], dict(zip(self._tensors, state["good"], strict=True))
        self._best = state["best_step"], dict(zip(self._tensors, state["best"], strict=True))
        self.evaluations = [(step, loss) for step, loss in state["evaluations"]]
        self._is_finishing = self.has_learnt_enough
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._scaler.load_state_dict(state["scaler"])
        self._without_gradient = state["without_gradient"]
        self._room.go_on(state)

    def _copy(self) -> dict[Address, Tensor]:
        # An interrupt can come in the midst of an update, when the tensors are those of no step.
        return {address: tensor.clone() for address, tensor in self._tensors.items()}

    def _batch(self, number: int) -> Batch:
        settings = self.settings
        epoch_number, place = divmod(number, self.batches_an_epoch)
        if self._order[0] != epoch_number:
            generator = chance(settings.seed, "order", epoch_number)
            self._order = epoch_number, epoch(self._examples, settings.batch_size, generator)
        chosen = [self._examples[i] for i in self._order[1][place]]
        generator = chance(settings.seed, "prompts", number)
        lines = torch.randint(len(settings.template), (len(chosen),), generator=generator).tolist()
        prompts = [
            self.learnable.prompt(settings.template[line], example) for line, example in zip(lines, chosen, strict=True)
        ]
        return Batch(number, number // settings.gradient_accumulation + 1, settings.seed, chosen, prompts)

    def _loss_and_gradients(self, batch: Batch) -> Tensor:
        """A batch's share of the step's loss, and its gradients, scaled for half precision: float32 [1 + all], on the
        model's device."""
        self.model.check_interrupted()
        return reduce(torch.add, self._room.part_by_part(batch.examples, partial(self._computed, batch)))

    def _computed(self, batch: Batch, places: slice) -> Tensor:
        """As `_loss_and_gradients`, of some of the batch's pictures: their share of it."""
        tensors = {
            address: upload(tensor, self.model.device).detach().requires_grad_()
            for address, tensor in self._tensors.items()
        }
        parts = len(batch.examples) / len(batch.examples[places])
        loss = self._loss(batch, places, tensors) / (self.settings.gradient_accumulation * parts)
        gradients = _gradients(loss * self._scaler.get_scale(), list(tensors.values()))
        return torch.cat([loss.detach()[None], *(gradient.flatten() for gradient in gradients)])

    def _loss(self, batch: Batch, places: slice, tensors: Mapping[Address, Tensor]) -> Tensor:
        settings = self.settings
        # Of the whole batch, so that a picture has its noise whatever it is computed together with.
        gaussian, t = draw_noise(
            (len(batch.examples), *batch.examples[0].latent.shape),
            len(self.model.noise_schedule),
            chance(settings.seed, "noise", batch.number),
            settings.min_timestep,
            settings.max_timestep,
        )
        part = batch.part(places)
        return torch.mean(self._losses(self.learnable, part, tensors, gaussian[places], t[places]))

    def _probed(self, batch: Sequence[Probe]) -> Tensor:
        """The losses of some probes, float32 [B] on the model's device."""
        self.model.check_interrupted()
        settings, device = self.settings, self.model.device
        tensors = {address: upload(tensor, device) for address, tensor in self._tensors.items()}
        examples, prompts = [probe.example for probe in batch], [probe.prompt for probe in batch]
        gaussian = torch.stack([noise(probe, settings.seed) for probe in batch])
        t = torch.tensor([probe.timestep for probe in batch])
        asked = Batch(batch[0].number, self.step, settings.seed, examples, prompts)
        learnable = self.learnable.in_stored_order()

        def compute(places: slice) -> Tensor:
            return self._losses(learnable, asked.part(places), tensors, gaussian[places], t[places])

        return torch.cat(self._room.part_by_part(examples, compute))

    def _losses(
        self, learnable: Learnable, batch: Batch, tensors: Mapping[Address, Tensor], gaussian: Tensor, t: Tensor
    ) -> Tensor:
        model = self.model
        batch = replace(batch, examples=[_on(model.device, example) for example in batch.examples])
        latents = torch.stack([example.latent for example in batch.examples])
        conditions = learnable.conditions(model, tensors, batch)
        weights = _stacked_weights(batch.examples)
        gaussian = upload(gaussian, model.device)
        return prediction_losses(model, latents, gaussian, t, conditions, weights, self.settings.loss_weighting)

    def _check_loss(self, loss: float, when: str, rate: float) -> None:
        if math.isfinite(loss):
            return
        self._is_whole, self._learnt = False, self._good  # those after it gave this loss
        raise TrainingError(
            f"The loss {when} is {loss}: the training has diverged. Try a lower learning rate (now {rate:g}), "
            "precision fp32, or another init text; check that the VAE fits the model."
        )

    def _check_gradients(self, norm: float, when: str, rate: float) -> None:
        overflowed = self._scaler.is_enabled() and self._scaler.get_scale() > 1
        if not math.isfinite(norm) and not overflowed:
            self._is_whole, self._learnt = False, self._good
            raise TrainingError(
                f"The gradients {when} are not finite: the training has diverged. Try a lower learning rate "
                f"(now {rate:g}), gradient clipping, or precision fp32."
            )

    def _set_gradients(self, gradients: Sequence[Tensor], when: str, rate: float) -> float:
        """Give each row its gradient, unscaled and clipped, or none where it is zero; returns the norm of all before
        they were clipped, infinity where they overflowed and are to be tried smaller."""
        settings = self.settings
        for (address, tensor), gradient in zip(self._tensors.items(), gradients, strict=True):
            tensor.grad = gradient.view_as(tensor)
            for row, own in zip(self._rows[address], tensor.grad.unbind(), strict=True):
                row.grad = own
        self._scaler.unscale_(self._optimizer)
        norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        self._check_gradients(norm, when, rate)
        if not math.isfinite(norm):
            return math.inf
        if settings.gradient_clipping == "norm":
            torch.nn.utils.clip_grad_norm_(self._tensors.values(), settings.clip_at)
        elif settings.gradient_clipping == "value":
            torch.nn.utils.clip_grad_value_(self._tensors.values(), settings.clip_at)
        for row in (row for rows in self._rows.values() for row in rows):
            if row.grad is not None and not row.grad.any():
                row.grad = None
        return norm

    def _check_reached(self, norm: float, batches: Sequence[Batch]) -> None:
        if norm > 0:
            self._without_gradient = 0
        elif any(self.learnable.is_named(prompt) for batch in batches for prompt in batch.prompts):
            # Otherwise the captions had nothing to teach.
            self._without_gradient += 1
        if self._without_gradient == ZERO_GRADIENT_STEPS:
            raise TrainingError(
                f"For {ZERO_GRADIENT_STEPS} steps no gradient has reached the embedding, so it does not change: this "
                "model's prediction does not depend on it. Try precision fp32 and ComfyUI without attention or "
                "speed-up options, and check that the CLIP belongs to the model."
            )


def _on(device: torch.device, example: Example) -> Example:
    weights = None if example.weights is None else upload(example.weights, device)
    return replace(example, latent=upload(example.latent, device), weights=weights)


def _stacked_weights(examples: Sequence[Example]) -> Tensor | None:
    """How much each place counts, float32 [B, h, w]; None where all do alike."""
    if all(example.weights is None for example in examples):
        return None
    alike = torch.ones_like(examples[0].latent[(0,) * (examples[0].latent.ndim - 2)])
    return torch.stack([alike if example.weights is None else example.weights for example in examples])


def _gradients(loss: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Of `loss` with respect to each tensor; zeros where a batch's prompts do not name what is trained."""
    if not loss.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
