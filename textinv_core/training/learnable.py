"""What is trained, told apart from how: its tensors, and how a batch of prompts is conditioned with them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..devices import upload
from ..embedding import Embedding
from ..hosts.base import Lookup, TrainableModel
from ..prompts import EMBEDDING, names_embedding, render
from ..shuffle import ShuffleConfig
from .chance import chance
from .examples import Example

# (name of an embedding, encoder key), or whatever else tells one tensor of a learnable from another.
Address = tuple[str, str]


@dataclass(frozen=True)
class Batch:
    """The pictures and prompts of one batch, or of a part of it.

    number: counted from 0 over all steps. step: the number of the optimizer step it belongs to, from 1. seed: of the
    training, for `chance`. first: the place in the batch of the first of these.
    """

    number: int
    step: int
    seed: int
    examples: Sequence[Example]
    prompts: Sequence[str]
    first: int = 0

    def part(self, places: slice) -> "Batch":
        """Some of a whole batch."""
        return replace(self, examples=self.examples[places], prompts=self.prompts[places], first=places.start)


class Learnable(ABC):
    """Something that can be trained, as it is before: an embedding, several, or whatever else changes a conditioning.

    name: for messages, and of the run's folder. step: optimizer steps it has been trained for already.
    """

    name: str
    step: int

    @property
    @abstractmethod
    def tensors(self) -> Mapping[Address, Tensor]:
        """Address -> float32 [n, ...]. Each of the n rows is learnt by itself: one that a step has no gradient for is
        not moved by it."""

    @abstractmethod
    def prompt(self, line: str, example: Example) -> str:
        """The prompt a template's line makes for a picture."""

    @abstractmethod
    def is_named(self, prompt: str) -> bool:
        """Whether there is something to learn from a prompt."""

    @abstractmethod
    def conditions(self, model: TrainableModel, tensors: Mapping[Address, Tensor], batch: Batch) -> Sequence[Any]:
        """What `model` makes of a batch's prompts, one condition each, with `tensors` as they are now.

        tensors: by the same addresses, on the model's device; gradients are asked for with respect to them.
        """

    def in_stored_order(self) -> "Learnable":
        """The same without what is for training alone, such as shuffling: as prompts have it afterwards."""
        return self

    @abstractmethod
    def snapshot(self, tensors: Mapping[Address, Tensor], step: int) -> Any:
        """What has been learnt by `step`, out of tensors on the CPU that nobody changes."""


@dataclass(frozen=True)
class LearnableEmbedding(Learnable):
    """One embedding, all its vectors, shuffled in the training prompts if told so.

    names: whether a prompt names the embedding of a name, see `Host.names`.
    """

    embedding: Embedding
    shuffle: ShuffleConfig = field(default_factory=ShuffleConfig)
    names: Callable[[str, str], bool] = names_embedding

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.embedding.name

    @property
    def step(self) -> int:  # type: ignore[override]
        return self.embedding.step or 0

    @property
    def tensors(self) -> dict[Address, Tensor]:
        return {(self.name, key): rows for key, rows in self.embedding.vectors.items()}

    def prompt(self, line: str, example: Example) -> str:
        prompt = render(line, self.name, example.caption)
        # Some models put a prompt right behind words of their own, and find a name behind whitespace alone.
        if prompt.startswith(EMBEDDING) and not self.is_named(prompt) and self.is_named(f" {prompt}"):
            return f" {prompt}"
        return prompt

    def is_named(self, prompt: str) -> bool:
        return self.names(prompt, self.name)

    def conditions(self, model: TrainableModel, tensors: Mapping[Address, Tensor], batch: Batch) -> Sequence[Any]:
        samples = range(batch.first, batch.first + len(batch.prompts))
        lookups = [{self.name: self._lookup(tensors, batch, sample)} for sample in samples]
        return model.conditions(batch.prompts, lookups, [example.latent for example in batch.examples])

    def _lookup(self, tensors: Mapping[Address, Tensor], batch: Batch, sample: int) -> Lookup:
        """Vectors for one sample's prompt. Encoders with equally many vectors share an order."""

        def look_up(key: str, occurrence: int) -> Tensor:
            rows = tensors[self.name, key]
            n = rows.shape[0]
            places = {"batch": (), "sample": (sample,), "occurrence": (sample, occurrence)}
            generator = chance(batch.seed, "shuffle", batch.number, n, *places[self.shuffle.per])
            order = self.shuffle.order(n, batch.step, generator)
            return rows if order == list(range(n)) else rows[upload(torch.tensor(order), rows.device)]

        return look_up

    def in_stored_order(self) -> "LearnableEmbedding":
        return replace(self, shuffle=ShuffleConfig())

    def snapshot(self, tensors: Mapping[Address, Tensor], step: int) -> Embedding:
        vectors = {key: rows for (_, key), rows in tensors.items()}
        return Embedding(self.name, vectors, step, self.embedding.metadata)
