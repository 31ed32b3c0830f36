"""A small model that embeddings can be trained on, and what it saw."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from textinv_core.dataset import Example
from textinv_core.embedding import Embedding
from textinv_core.noise import NoiseSchedule

WIDTHS = {"clip_l": 4, "clip_g": 6}
CHANNELS = 3


def fixed(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Condition:
    """One encoded prompt, with what it was made of."""

    rows: Tensor
    prompt: str
    latent: Tensor


@dataclass
class Call:
    """What `predict` was given."""

    noisy: Tensor
    t: Tensor
    prompts: list[str]
    latents: list[Tensor]


@dataclass
class Asked:
    """What `condition` was given by `lookup`: prompts are counted from 0 over the whole training."""

    prompt: int
    key: str
    occurrence: int
    rows: Tensor


@dataclass
class FakeModel:
    """A `TrainableModel`: two text encoders in which places in the prompt matter, and a v-prediction network.

    Each picture element stands alone, so what is masked away can be told from what is not.
    change: what is done to each prediction, given the number of the call to `predict`, from 1.
    """

    dtype: torch.dtype = torch.float32
    change: Callable[[Tensor, int], Tensor] = lambda prediction, call: prediction
    calls: list[Call] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    prompts: int = 0
    checkpointed: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def __post_init__(self):
        sigmas = torch.logspace(-2, 1.2, 1000, dtype=torch.float64)
        scale = 1 / (sigmas**2 + 1)
        self.noise_schedule = NoiseSchedule(torch.ones_like(sigmas), sigmas, scale, -sigmas * scale.sqrt())

    def weight(self, seed: int, *shape: int) -> Tensor:
        return fixed(seed, *shape).to(self.dtype)

    def conditions(self, prompts, name, lookups, latents) -> list[Any]:
        return [self.condition(p, name, look, x) for p, look, x in zip(prompts, lookups, latents, strict=True)]

    def condition(self, prompt: str, name: str, lookup: Callable[[str, int], Tensor], latent: Tensor) -> Any:
        out = torch.zeros(CHANNELS, dtype=self.dtype)
        for key, width in WIDTHS.items():
            tokens, occurrence = [], 0
            for word in prompt.split():
                if word.strip(",") == f"embedding:{name}":
                    tokens.append(lookup(key, occurrence).to(self.dtype))
                    self.asked.append(Asked(self.prompts, key, occurrence, tokens[-1].detach().clone()))
                    occurrence += 1
                else:
                    tokens.append(self.weight(zlib.crc32(word.encode()), 1, width))
            rows = torch.cat(tokens)
            places = torch.arange(1, len(rows) + 1, dtype=torch.float64).sqrt().to(self.dtype)
            out = out + (torch.tanh(rows * places[:, None]) / places[:, None]).sum(0) @ self.weight(1, width, CHANNELS)
        self.prompts += 1
        return Condition(out, prompt, latent)

    def predict(self, noisy: Tensor, t: Tensor, conditions: list[Condition]) -> Tensor:
        prompts, latents = [c.prompt for c in conditions], [c.latent for c in conditions]
        self.calls.append(Call(noisy.detach().clone(), t.clone(), prompts, latents))
        x = (noisy / (self.noise_schedule.noise[t] + 1).to(noisy)[:, None, None, None]).to(self.dtype)
        context = torch.stack([c.rows for c in conditions])
        time = (t / len(self.noise_schedule)).to(self.dtype)[:, None] * self.weight(2, CHANNELS)
        hidden = torch.tanh(torch.einsum("ij,bjhw->bihw", self.weight(3, CHANNELS, CHANNELS), x))
        prediction = hidden * (1 + 0.1 * context)[:, :, None, None] + (context + time)[:, :, None, None]
        return self.change(prediction, len(self.calls))

    def checkpoint_activations(self) -> None:
        self.checkpointed += 1


@pytest.fixture
def make_model() -> type[FakeModel]:
    return FakeModel


@pytest.fixture
def make_embedding() -> Callable[..., Embedding]:
    def make(n: int = 3, n_g: int | None = None, step: int | None = 0, **more) -> Embedding:
        vectors = {
            "clip_l": 0.3 * fixed(4, n, WIDTHS["clip_l"]).float(),
            "clip_g": 0.3 * fixed(5, n if n_g is None else n_g, WIDTHS["clip_g"]).float(),
        }
        return Embedding("cat", vectors, step, **more)

    return make


@pytest.fixture
def numbered_embedding() -> Callable[..., Embedding]:
    """An embedding whose rows say which they are: row i is filled with i / 10."""

    def make(n: int, n_g: int) -> Embedding:
        rows = {
            key: (torch.arange(count) / 10)[:, None].repeat(1, WIDTHS[key])
            for key, count in zip(WIDTHS, (n, n_g), strict=True)
        }
        return Embedding("cat", rows, 0)

    return make


@pytest.fixture
def make_examples() -> Callable[..., list[Example]]:
    """Pictures that have their colour in common; the caption of number i is `picture-i`."""

    def make(n: int = 3, size: tuple[int, int] = (4, 6)) -> list[Example]:
        colour = torch.tensor([1.0, -0.5, 0.3])[:, None, None]
        return [Example(colour + 0.2 * fixed(10 + i, CHANNELS, *size).float(), f"picture-{i}") for i in range(n)]

    return make
