"""What tests train: a small model that remembers what it saw, an embedding, pictures."""

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textinv_core.embedding import Embedding
from textinv_core.formats import load_embedding
from textinv_core.hosts.base import Encoder, Host, Lookup, Sampling
from textinv_core.hosts.marks import mark
from textinv_core.noise import NoiseSchedule
from textinv_core.picture import Picture
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.examples import Example
from textinv_core.training.folder import RunFolder
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.parallel import ALONE, Processes
from textinv_core.training.run import Ended, run
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Step, Training


class Interrupted(BaseException):
    """As the host's interrupt, no Exception."""


WIDTHS = {"clip_l": 4, "clip_g": 6}
CHANNELS = 3


def fixed(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same for the same seed, rounded to `dtype`."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


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
    name: str


@dataclass
class FakeModel:
    """A `TrainableModel`: two text encoders in which places in the prompt matter, and a v-prediction network.

    Each picture element stands alone, so what is masked away can be told from what is not.
    change: what is done to each prediction, given the number of the call to `predict`, from 1.
    is_interrupted: whether the person wants to stop after so many of these calls.
    can_give_way: whether it is not yet tolerant of what autograd refuses. gave_way: how often it was asked to be.
    """

    dtype: torch.dtype = torch.float32
    change: Callable[[Tensor, int], Tensor] = lambda prediction, call: prediction
    is_interrupted: Callable[[int], bool] = lambda calls: False
    calls: list[Call] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    prompts: int = 0
    checkpointed: int = 0
    can_give_way: bool = False
    gave_way: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    modules: tuple[torch.nn.Module, ...] = ()

    def __post_init__(self):
        sigmas = torch.logspace(-2, 1.2, 1000, dtype=torch.float64)
        scale = 1 / (sigmas**2 + 1)
        self.noise_schedule = NoiseSchedule(torch.ones_like(sigmas), sigmas, scale, -sigmas * scale.sqrt())

    def weight(self, seed: int, *shape: int) -> Tensor:
        return fixed(seed, *shape).to(self.dtype)

    def conditions(self, prompts, lookups, latents) -> list[Any]:
        return [self.condition(p, look, x) for p, look, x in zip(prompts, lookups, latents, strict=True)]

    def condition(self, prompt: str, lookups: Mapping[str, Lookup], latent: Tensor) -> Any:
        out = torch.zeros(CHANNELS, dtype=self.dtype)
        for key, width in WIDTHS.items():
            tokens, met = [], Counter()
            for word in prompt.split():
                name = word.strip(",").removeprefix("embedding:")
                if word.startswith("embedding:") and name in lookups:
                    tokens.append(lookups[name](key, met[name]).to(self.dtype))
                    self.asked.append(Asked(self.prompts, key, met[name], tokens[-1].detach().clone(), name))
                    met[name] += 1
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
        places = [1] * (noisy.ndim - 2)
        x = (noisy / (self.noise_schedule.noise[t] + 1).to(noisy).reshape(-1, 1, *places)).to(self.dtype)
        context = torch.stack([c.rows for c in conditions])
        time = (t / len(self.noise_schedule)).to(self.dtype)[:, None] * self.weight(2, CHANNELS)
        hidden = torch.tanh(torch.einsum("ij,bj...->bi...", self.weight(3, CHANNELS, CHANNELS), x))
        prediction = hidden * (1 + 0.1 * context).unflatten(1, (-1, *places)) + (context + time).unflatten(
            1, (-1, *places)
        )
        return self.change(prediction, len(self.calls))

    def give_way(self) -> bool:
        self.gave_way += 1
        could, self.can_give_way = self.can_give_way, False
        return could

    def checkpoint_activations(self) -> None:
        self.checkpointed += 1

    def check_interrupted(self) -> None:
        if self.is_interrupted(len(self.calls)):
            raise Interrupted

    def lean_modules(self) -> list[torch.nn.Module]:
        return []


def train(
    model: Any,
    examples: Sequence[Example],
    embedding: Embedding,
    settings: TrainSettings,
    shuffle: ShuffleConfig | None = None,
    processes: Processes = ALONE,
) -> Iterator[Step]:
    """The steps of a training; what keeps it from starting is raised when the first is asked for."""
    learnable = LearnableEmbedding(embedding, shuffle or ShuffleConfig())
    yield from Training(model, examples, learnable, settings, processes).steps()


def fake_embedding(n: int = 3, n_g: int | None = None, step: int | None = 0, **more: Any) -> Embedding:
    """`cat`, of n vectors for clip_l, and n_g for clip_g, or as many."""
    counts = {"clip_l": n, "clip_g": n if n_g is None else n_g}
    return Embedding("cat", {key: 0.3 * fixed(4, counts[key], WIDTHS[key]).float() for key in WIDTHS}, step, **more)


def numbered_embedding(n: int, n_g: int, step: int | None = 0) -> Embedding:
    """An embedding whose rows say which they are: row i is filled with i / 10."""
    counts = {"clip_l": n, "clip_g": n_g}
    rows = {key: (torch.arange(counts[key]) / 10)[:, None].repeat(1, WIDTHS[key]) for key in WIDTHS}
    return Embedding("cat", rows, step)


def fake_example(
    number: int, size: tuple[int, int] = (4, 6), caption: str | None = None, weights: Tensor | None = None
) -> Example:
    """One of the pictures that have their colour in common; its caption is `picture-<number>` if none is given.

    size: height and width of the latent. weights: as of `Example`, [height, width].
    """
    colour = torch.tensor([1.0, -0.5, 0.3])[:, None, None]
    latent = colour + 0.2 * fixed(10 + number, CHANNELS, *size).float()
    return Example(latent, f"picture-{number}" if caption is None else caption, weights)


def fake_examples(n: int = 3, size: tuple[int, int] = (4, 6)) -> list[Example]:
    return [fake_example(i, size) for i in range(n)]


def same(a: Embedding, b: Embedding) -> bool:
    """Whether two embeddings, of the same encoders, have the same vectors to the bit."""
    assert a.vectors.keys() == b.vectors.keys()
    return all(torch.equal(a.vectors[key], b.vectors[key]) for key in a.vectors)


def run_training(
    model: Any,
    examples: Sequence[Example],
    embedding: Embedding,
    settings: TrainSettings,
    folder: Path,
    shuffle: ShuffleConfig | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    processes: Processes = ALONE,
) -> Ended:
    """How a run ended, in `folder`; the first process's alone."""
    training = Training(model, examples, LearnableEmbedding(embedding, shuffle or ShuffleConfig()), settings, processes)
    with closing(run(training, RunFolder(folder) if processes.rank == 0 else None)) as events:
        for event in events:
            if isinstance(event, Step):
                on_step(event)
    assert isinstance(event, Ended)
    return event


class FakeEncoder(Encoder):
    """Each word is a token, its vector is drawn by its letters."""

    def __init__(self, width: int):
        self.table = torch.nn.Embedding(1, width, _weight=torch.zeros(1, width))

    def tokens(self, text: str) -> list[tuple[int, float]]:
        return [(zlib.crc32(word.encode()), 1.0) for word in text.split()]

    def vectors(self, tokens: Sequence[int]) -> Tensor:
        return torch.cat([fixed(token, 1, self.width, dtype=torch.float32) for token in tokens])


@dataclass
class FakeHost(Host):
    """A host with a `FakeModel`, whose latents are its pictures with a fourth of the sides.

    sampling: what `sample` gives, or raises. did: what it was asked to do, in order. sampled: how it was, last. number:
    tells hosts apart where latents are kept.
    """

    model: FakeModel = field(default_factory=FakeModel)
    sampling: Any = None
    did: list[str] = field(default_factory=list)
    number: int = field(default_factory=itertools.count().__next__)
    sampled: Sampling | None = None
    called = "fake model"
    interrupts = (Interrupted,)
    samplers = ("euler", "dpmpp_2m")
    schedulers = ("normal", "karras")
    encoder_name = "FakeEncoder"
    latent_multiple = 4

    @property
    def encoders(self) -> dict[str, FakeEncoder]:
        return {key: FakeEncoder(width) for key, width in WIDTHS.items()}

    def _encoded(self, embedding: Embedding) -> list[Tensor]:
        return [embedding.vectors[key] for key in WIDTHS]

    def _encoded_from(self, file: Path, embedding: Embedding) -> list[Tensor]:
        return self._encoded(load_embedding(file))

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        if self.did[-1:] != ["encode"]:
            self.did.append("encode")
        return [image[::4, ::4].movedim(-1, 0) for image in images]

    def encoding(self) -> str:
        return f"fake {self.number}"

    def decode(self, latents: Tensor) -> Tensor:
        return latents.movedim(1, -1)

    def sample(self, prompts, seeds, shape, sampling, embeddings=()) -> Tensor:
        known = [embedding.step for embedding in embeddings]
        self.did.append(f"sample {prompts} of {list(shape)} with {known}, seeds {seeds}, {sampling.steps} steps")
        self.sampled = sampling
        if isinstance(self.sampling, BaseException):
            raise self.sampling
        return torch.full((1, 64, 64, 3), 0.5) if self.sampling is None else self.sampling

    def _load(self, latent: Tensor, batch_size: int, stack: ExitStack) -> Any:
        self.did.append("load")
        stack.callback(self.did.append, "unload")
        return self.model

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "weight", torch.ones(3)

    def identities(self) -> dict[str, str]:
        return {part: mark(part) for part in ("model", "clip", "vae")}


def fake_pictures(n: int = 3, height: int = 16, width: int = 24) -> list[Picture]:
    return [
        Picture(
            fixed(20 + i, height, width, 3, dtype=torch.float32).sigmoid(),
            torch.ones(height, width),
            f"picture-{i}",
            str(i),
        )
        for i in range(n)
    ]
