"""What an optimizer step does with the gradients."""

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import TrainingError
from ..schedule import LearningRateSchedule

log = logging.getLogger("textinv")

QUARTER = math.pi / 2
# Radians that all steps together turn a vector by, one way and another, in the recipe of Kim et al.: 500 steps of 0.01.
REACH = 5
# AdamW's first step moves each number by the rate; CLIP's words have numbers of 0.01, and a norm of 0.4.
TOO_FAST = 0.1


def optimizer(name: str, rows: Iterable[Tensor], rate: float) -> Optimizer:
    """One of `settings.OPTIMIZERS` for vectors [dim] each. Neither decays weights, which would pull vectors to zero,
    where there are no words."""
    return Turning(rows, rate) if name == "sphere" else torch.optim.AdamW(rows, rate, weight_decay=0.0)


class Turning(Optimizer):
    """Steepest descent on spheres: each vector turns by `lr` radians a step, and keeps its length.

    Which way it points is what a vector means; grown beyond the vocabulary's, as AdamW leaves them, it drowns the rest
    of a prompt. The gradient is projected onto the tangent space, and only its direction is used, so that no step
    depends on how large losses are. As Directional Textual Inversion does (Kim et al. 2025,
    https://arxiv.org/abs/2512.13672), but along the great circle, at the length it began with, which there is the
    vocabulary's mean, and without its pull back to the first direction.

    params: vectors [dim], not zero. A step with no gradient, or one along the vector, moves nothing.
    """

    def __init__(self, params: Iterable[Tensor], lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            angle = torch.tensor(group["lr"], dtype=torch.float64)
            for vector in group["params"]:
                if vector.grad is None:
                    continue
                there = vector.double()
                length = there.norm()
                unit = there / length
                gradient = vector.grad.double()
                tangent = gradient - (gradient @ unit) * unit
                # What is left by rounding where there is none points anywhere.
                if tangent.norm() > 1e-6 * gradient.norm():
                    turned = angle.cos() * unit - angle.sin() * tangent / tangent.norm()
                    vector.copy_(length * turned)


def check_turning(tensors: Iterable[Tensor], rates: LearningRateSchedule) -> None:
    """Raise TrainingError where `Turning` cannot turn."""
    if any(not rows.any(1).all() for rows in tensors):
        raise TrainingError(
            "Optimizer sphere turns vectors, and one of these is zero, which points nowhere. Give the embedding an "
            "init text, or choose optimizer adamw."
        )
    fastest = max(rate for rate, _ in rates.spans)
    if fastest > QUARTER:
        raise TrainingError(
            f"With optimizer sphere the learning rate is an angle in radians, and {fastest:g} is more than a quarter "
            "turn, 1.57. Try 0.05."
        )


def warn_of_rates(name: str, rates: LearningRateSchedule, is_new: bool) -> None:
    """Say where rates look like those of another of `settings.OPTIMIZERS`, and where `Turning` will not get far from
    the start: what has been trained before, is_new False, may need no more."""
    fastest = max(rate for rate, _ in rates.spans)
    if name == "adamw" and fastest > TOO_FAST:
        log.warning(
            f"textinv: a learning rate of {fastest:g} takes optimizer adamw further in one step than a word's vector "
            "is long. Try 0.002; or is it an angle, for optimizer sphere?"
        )
    path = sum(rate * steps for rate, steps in rates.spans)
    steps = sum(steps for _, steps in rates.spans)
    if name == "sphere" and is_new and path < QUARTER:
        rate = REACH / steps
        advice = f"Try a rate of {rate:.1g}, or more steps." if rate < QUARTER / 2 else "Try more steps."
        log.warning(
            f"textinv: optimizer sphere turns vectors by {path:.2g} radians in all {steps} steps, and what they could "
            f"learn is usually further away than a quarter turn, 1.57. {advice}"
        )
