"""Fitting a training into the memory there is: more activations computed again, then fewer pictures at a time."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..devices import is_out_of_memory
from ..errors import TrainingError
from ..hosts.base import TrainableModel
from .examples import Example
from .settings import TrainSettings

log = logging.getLogger("textinv")


class Room:
    """How much is computed at once with `model`; less from each time on that memory has run out."""

    def __init__(self, model: TrainableModel, settings: TrainSettings):
        self._settings = settings
        self._is_checkpointing, self._at_once = settings.gradient_checkpointing == "on", settings.batch_size
        self.model = model

    @property
    def model(self) -> TrainableModel:
        """What is computed with."""
        return self._model

    @model.setter
    def model(self, model: TrainableModel) -> None:
        self._model = model
        if self._is_checkpointing:
            model.checkpoint_activations()

    def state(self) -> dict[str, Any]:
        """What `go_on` needs, as plain values."""
        return {"checkpointing": self._is_checkpointing, "at_once": self._at_once}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Begin with as little as another one came to: what ran out of memory before would again."""
        self._at_once = state["at_once"]
        if state["checkpointing"] and self._may_checkpoint:
            self._checkpoint()

    def part_by_part(self, examples: Sequence[Example], compute: Callable[[slice], Tensor]) -> list[Tensor]:
        """What `compute` gives for the parts of a batch, each as large as memory has room for.

        Where it runs out, from then on less is kept for the backward pass; then the parts are halved. Raises
        TrainingError where one picture is too much.
        """
        while True:
            size = min(self._at_once, len(examples))
            try:
                return [compute(slice(at, at + size)) for at in range(0, len(examples), size)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    if not self.model.give_way():
                        raise
                    log.debug("textinv: tried again, tolerantly, because of: %s", error)
                    continue
                reason = str(error)
            # Behind the handler and in another call, because the error and its frames hold all that fills the memory.
            self._make(examples, reason)

    def _make(self, examples: Sequence[Example], reason: str) -> None:
        at_once = min(self._at_once, len(examples))
        if self._may_checkpoint and torch.is_grad_enabled():
            self._checkpoint()
            log.warning(
                "textinv: memory has run out. The training goes on with gradient_checkpointing, which needs less of it "
                "and about half as much time again."
            )
        elif at_once > 1:
            self._at_once = (at_once + 1) // 2
            log.warning(
                f"textinv: memory has run out. The training goes on with {_pictures(self._at_once)} at a time in place "
                f"of {at_once}; a step still learns from the same pictures."
            )
        else:
            raise TrainingError(self._none_left(examples[0], reason))

    def _none_left(self, example: Example, reason: str) -> str:
        """What to tell the person; reason: torch's own words."""
        width, height = example.size
        kind = str(self.model.dtype).removeprefix("torch.")
        figures = ". ".join(reason.splitlines()[0].split(". ")[:3])  # of CUDA's dozen sentences
        checkpointing = "" if self._is_checkpointing else "gradient_checkpointing auto, "
        return (
            f"There is not enough memory to train on one picture of {width}x{height} pixels at a time "
            f"({kind} on {self.model.device}, gradient_checkpointing {'on' if self._is_checkpointing else 'off'}, "
            f"batch_size {self._settings.batch_size}): {figures.removesuffix('.')}. Smaller pictures take less (width "
            f"and height), and so do {checkpointing}a model in half precision (precision bf16), and other programs "
            "when they are closed."
        )

    @property
    def _may_checkpoint(self) -> bool:
        return self._settings.gradient_checkpointing == "auto" and not self._is_checkpointing

    def _checkpoint(self) -> None:
        self._is_checkpointing = True
        self.model.checkpoint_activations()


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"
