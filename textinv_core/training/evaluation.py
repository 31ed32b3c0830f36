"""The fixed loss: the loss on probes that stay the same for a whole run, and what it decides.

After DVAR (Voronov et al. 2023, https://arxiv.org/abs/2302.04841): single losses say more of their noise and timestep
than of progress, so these are kept fixed. Here timesteps are spread evenly instead of drawn.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import pvariance

import torch
from torch import Tensor

from ..errors import SettingError
from .chance import chance
from .examples import Example, buckets
from .learnable import Learnable
from .objective import timestep_range
from .settings import TrainSettings

PROBES = 16
# By default the fixed loss is taken after so many pictures that were learnt from, and in short trainings less often, so
# that it takes a tenth of the time at most: probing with a picture takes about half as long as learning from it,
# gradients of no weights being needed.
PICTURES_BETWEEN = 100
PICTURES_AN_EVALUATION = 9 * PROBES // 2

# Evaluations in DVAR's window, and the share of all evaluations' variance that it ends below.
WINDOW = 8
AT_REST = 0.15


@dataclass(frozen=True)
class Evaluated:
    """The fixed loss after a step, or before the first. is_best: lower than ever before, the start included."""

    step: int
    loss: float
    is_best: bool


@dataclass(frozen=True)
class Probe:
    """One question to the model that stays the same: a picture, its prompt, a timestep, and by its number the noise."""

    number: int
    example: Example
    prompt: str
    timestep: int


def split(pictures: int, settings: TrainSettings) -> tuple[list[int], list[int]]:
    """Which of so many pictures are learnt from, in their order, and which are held out; the seed decides.

    Raises UserError where none would be left to learn from.
    """
    if settings.held_out and settings.held_out >= pictures:
        raise SettingError(
            lambda name: (
                f"The training cannot start: {name('held_out')} cannot be {settings.held_out} with {pictures} "
                f"pictures; at least one must be left to learn from, so it can be 0 to {max(0, pictures - 1)}."
            )
        )
    order = torch.randperm(pictures, generator=chance(settings.seed, "held_out")).tolist()
    held_out = order[: settings.held_out]
    return sorted(order[settings.held_out :]), held_out


def probes(
    learnable: Learnable,
    learnt_from: Sequence[Example],
    held_out: Sequence[Example],
    settings: TrainSettings,
    timesteps: int,
) -> list[list[Probe]]:
    """The probes of a training: PROBES in all, in batches of one latent shape, `settings.batch_size` of them at most.

    Their timesteps, out of the model's `timesteps`, are the middles of equal parts of those that are learnt from.
    Pictures are taken in turn: those held out, or where there are none, those learnt from. Each prompt is of one of the
    template's lines that name what is learnt; pictures for which none does are left out.
    """

    def naming(pictures: Sequence[Example]) -> Iterator[tuple[Example, list[str]]]:
        for example in pictures:
            prompts = [learnable.prompt(line, example) for line in settings.template]
            if named := list(filter(learnable.is_named, prompts)):
                yield example, named

    of_pictures = list(islice(naming(held_out), PROBES)) or list(islice(naming(learnt_from), PROBES))
    first, end = timestep_range(timesteps, settings.min_timestep, settings.max_timestep)
    made = []
    for number in range(PROBES):
        example, prompts = of_pictures[number % len(of_pictures)]
        line = int(torch.randint(len(prompts), (), generator=chance(settings.seed, "probes", number, 0)))
        timestep = first + (2 * number + 1) * (end - first) // (2 * PROBES)
        made.append(Probe(number, example, prompts[line], timestep))
    size = settings.batch_size
    return [
        [made[index] for index in bucket[start : start + size]]
        for bucket in buckets([probe.example for probe in made])
        for start in range(0, len(bucket), size)
    ]


def noise(probe: Probe, seed: int) -> Tensor:
    """What is added to a probe's latent, float32 of its shape, on the CPU."""
    return torch.randn(probe.example.latent.shape, generator=chance(seed, "probes", probe.number, 1))


def steps_between(settings: TrainSettings, steps: int) -> int:
    """From one evaluation to the next in a training of so many steps; 0 for none at all."""
    if settings.evaluate_every >= 0:
        return settings.evaluate_every
    a_step = settings.batch_size * settings.gradient_accumulation
    most = steps * a_step // PICTURES_AN_EVALUATION  # the start's included
    return 0 if most < 2 else max(math.ceil(PICTURES_BETWEEN / a_step), math.ceil(steps / (most - 1)))


def is_out_of_patience(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` of the fixed losses were none lower than all before; the first is of the start."""
    return len(losses) > patience + 1 and min(losses[1:-patience]) <= min(losses[-patience:])


def is_at_rest(losses: Sequence[float], window: int = WINDOW, share: float = AT_REST) -> bool:
    """DVAR's criterion: the variance of the last fixed losses is a small share of that of all, the start's included."""
    return len(losses) > window and pvariance(losses[-window:]) < share * pvariance(losses)


def has_learnt_enough(losses: Sequence[float], settings: TrainSettings) -> bool:
    """Whether `settings.early_stop` ends a training with these fixed losses, the start's first."""
    if settings.early_stop == "patience":
        return is_out_of_patience(losses, settings.patience)
    return settings.early_stop == "dvar" and is_at_rest(losses)


def can_end_early(settings: TrainSettings, steps: int) -> bool:
    """Whether a training of so many steps takes its fixed loss often enough for `settings.early_stop` to end it."""
    every = steps_between(settings, steps)
    needed = settings.patience + 2 if settings.early_stop == "patience" else WINDOW + 1
    return every > 0 and 1 + (steps - 1) // every >= needed
