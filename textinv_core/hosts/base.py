"""What a model must offer so that embeddings can be trained on it, and all that is the same whoever offers it.

A `Host` is a model with its text encoders and its VAE, as somebody has loaded them. A new one is a file with a subclass
of each class here.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..embedding import UNREAD, Embedding, create_embedding, unread_text
from ..errors import UserError
from ..noise import NoiseSchedule
from ..prompts import EMBEDDING, names_embedding
from .autograd import lean, ordinary_weights, storages, without_leftovers
from .checkpoints import checkpointing
from .tolerant import Tolerant

# (encoder key, occurrence in the prompt counted from 0) -> the vectors [n, dim] to put there.
Lookup = Callable[[str, int], Tensor]
# (encoder key, name in a prompt) -> the vectors [n, dim] to put there, None for a name that is not known.
Find = Callable[[str, str], Tensor | None]

MEASURED_TOKENS = 4096  # of a vocabulary, which can have a quarter of a million, to tell how long words are


@dataclass(frozen=True)
class Known:
    """A `Find` for embeddings that stay as they are, by name."""

    embeddings: Mapping[str, Embedding]

    def __call__(self, key: str, name: str) -> Tensor | None:
        embedding = self.embeddings.get(name)
        return None if embedding is None else embedding.vectors[key]


class Occurrences:
    """A `Find` for one prompt: counts how often each encoder meets a name, and asks the name's `Lookup`."""

    def __init__(self, lookups: Mapping[str, Lookup]):
        self._lookups = lookups
        self._met: Counter[tuple[str, str]] = Counter()

    def __call__(self, key: str, name: str) -> Tensor | None:
        if name not in self._lookups:
            return None
        occurrence = self._met[key, name]
        self._met[key, name] += 1
        return self._lookups[name](key, occurrence)


class Encoder(ABC):
    """One text encoder."""

    table: Any
    """The module that looks up the vectors of token ids."""
    reads_files: bool = True
    """Whether prompts find embeddings in files by themselves, without being handed them."""

    @property
    def width(self) -> int:
        return self.table.weight.shape[1]

    @abstractmethod
    def tokens(self, text: str) -> Sequence[tuple[int | Tensor, float]]:
        """What the encoder is fed for `text`, without start and end: ids or vectors [dim], each with its weight."""

    @abstractmethod
    def vectors(self, tokens: Sequence[int]) -> Tensor:
        """What the table has for n tokens, float32 [n, dim] on the CPU."""


class TrainableModel(ABC):
    """A loaded model that gradients can pass through, from its prediction back to an embedding's vectors.

    Made by `Host.trainable`, and valid inside it.
    """

    device: torch.device
    dtype: torch.dtype  # what the diffusion model computes in
    noise_schedule: NoiseSchedule
    modules: Sequence[nn.Module]  # all that gradients pass through
    blocks: Sequence[nn.Module]  # what is made of blocks that can be computed again for the backward pass
    tolerant_blocks: Sequence[nn.Module] = ()  # the same, of what is always run inside `tolerant`

    is_tolerant = False
    """Whether what autograd refuses in the diffusion model is done otherwise, see `tolerant.Tolerant`."""

    def __init__(self, stack: ExitStack):
        self._stack = stack

    @cached_property
    def tolerant(self) -> Tolerant:
        """What autograd refuses in these models, done otherwise."""
        return Tolerant(storages(*self.modules), self.differentiable)

    def differentiable(self, operation: Any) -> Any | None:
        """What does the same as an operation of the host's that has no backward; None where nothing is known."""
        return None

    def give_way(self) -> bool:
        """From now on be tolerant, because a RuntimeError came of autograd or of who knows what. False if it already
        was: then trying again makes no sense."""
        was_tolerant, self.is_tolerant = self.is_tolerant, True
        return not was_tolerant

    @abstractmethod
    def conditions(
        self, prompts: Sequence[str], lookups: Sequence[Mapping[str, Lookup]], latents: Sequence[Tensor]
    ) -> Sequence[Any]:
        """Encode a batch of prompts, each with what its lookups give wherever it says `embedding:<name>`.

        lookups: for each prompt, name -> lookup; other names are the host's to find. latents: [C, ..., h, w] each, the
        pictures the prompts are for; some models condition on their size. What comes back, one a prompt, is the host's
        own and is only ever handed to `predict`.
        """

    def predict(self, noisy: Tensor, t: Tensor, conditions: Sequence[Any]) -> Tensor:
        """The model's raw prediction [B, C, ..., h, w] for noisy latents at timesteps t, int64 [B], one condition each.

        All at once where their conditions allow it, else one by one.
        """
        with ExitStack() as stack:
            if self.is_tolerant:
                stack.enter_context(self.tolerant)
                stack.enter_context(self.tolerant.keeping())
            if len(conditions) == 1 or self._fit_together(conditions):
                return self._predict(noisy, t, conditions)
            return torch.cat([self._predict(noisy[i : i + 1], t[i : i + 1], [c]) for i, c in enumerate(conditions)])

    @abstractmethod
    def _fit_together(self, conditions: Sequence[Any]) -> bool: ...

    @abstractmethod
    def _predict(self, noisy: Tensor, t: Tensor, conditions: Sequence[Any]) -> Tensor: ...

    @abstractmethod
    def lean_modules(self) -> Iterable[nn.Module]:
        """The Linear and Conv whose cast weights, or inputs, autograd need not keep; see `autograd.lean`."""

    @abstractmethod
    def recast(self, module: nn.Module, like: Tensor) -> Tensor:
        """The weight of one of `lean_modules` with the type and device of `like`."""

    def checkpoint_activations(self) -> None:
        """From now on keep less for the backward pass, and compute it again there."""
        for block in self.blocks:
            self._stack.enter_context(checkpointing(block, lambda: self.tolerant if self.is_tolerant else None))
        for block in self.tolerant_blocks:
            self._stack.enter_context(checkpointing(block, lambda: self.tolerant))

    def check_interrupted(self) -> None:  # noqa: B027  (most have nothing to look at)
        """Raise what the host raises where it is asked to stop; looked at before each batch."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are generated.

    steps: of the sampler, >= 1. guidance: how closely to keep to the prompt (Ho & Salimans 2022, "cfg"), >= 0; at 1
    `negative`, what is not wanted, has no effect. sampler: how noise is taken away. scheduler: how much of it at each
    step. Both by the host's names, see `Host.samplers`; "" is what it takes by itself.
    """

    steps: int = 20
    guidance: float = 7.0
    negative: str = ""
    sampler: str = ""
    scheduler: str = ""


class Host(ABC):
    """A loaded model with its text encoders and its VAE, in its own program's terms."""

    called: ClassVar[str]
    """What messages call the thing that an embedding has to fit."""
    interrupts: ClassVar[tuple[type[BaseException], ...]] = ()
    """What is raised in the program where a person stops it, besides KeyboardInterrupt."""
    _is_tolerant = False  # what the last `TrainableModel` came to

    # Text encoders and their embeddings

    @property
    @abstractmethod
    def encoders(self) -> Mapping[str, Encoder]:
        """The text encoders that take embeddings, by encoder key. Raises UserError, naming it, where none does."""

    @property
    @abstractmethod
    def encoder_name(self) -> str:
        """What the text encoders are, for messages."""

    @property
    def widths(self) -> dict[str, int]:
        """Encoder key -> the width of the vectors that encoder takes."""
        return {key: encoder.width for key, encoder in self.encoders.items()}

    @property
    def unread(self) -> list[str]:
        """The keys of text encoders for which prompts find no embeddings in files: there they have to be applied."""
        return [key for key, encoder in self.encoders.items() if not encoder.reads_files]

    @property
    def left_out(self) -> list[str]:
        """What the text encoders are called that take no embeddings."""
        return []

    def names(self, prompt: str, name: str) -> bool:
        """Whether `prompt` names the embedding `name` for at least one of the text encoders."""
        return names_embedding(prompt, name)

    def check_fits(self, embedding: Embedding) -> None:
        """Raise UserError unless `embedding` has vectors of the right width for every text encoder."""
        widths, vectors = self.widths, embedding.vectors
        if all(key in vectors and vectors[key].shape[1] == width for key, width in widths.items()):
            return
        raise UserError(
            f"The embedding {embedding.name!r} does not fit this {self.called}: it has {embedding.shapes}, and the "
            f"text encoder ({self.encoder_name}) takes vectors of width "
            f"{', '.join(f'{width} for {key}' for key, width in widths.items())}. Use it with the kind of model it was "
            f"made for, or create it with this {self.called}."
        )

    def text_vectors(self, text: str) -> dict[str, Tensor]:
        """What the text encoders see of `text`: encoder key -> the vectors of its tokens, float32 [tokens, dim].

        Only the table of tokens is used, neither start nor end tokens, no transformer. Raises UserError where the text
        weights words, which vectors cannot hold.
        """
        seen = {}
        for key, encoder in self.encoders.items():
            tokens = encoder.tokens(text)
            if any(weight != 1.0 for _, weight in tokens):
                raise UserError(
                    f"The init text {text!r} gives some words a weight. An embedding cannot hold weights; take the "
                    r"brackets out, or write \( and \) where they belong to the text."
                )
            rows = [
                token.reshape(1, -1).to("cpu", torch.float32) if isinstance(token, Tensor) else encoder.vectors([token])
                for token, _ in tokens
            ]
            seen[key] = torch.cat([torch.empty(0, encoder.width), *rows])
        return seen

    def create_embedding(self, name: str, init_text: str, vectors: int) -> Embedding:
        """A new embedding that starts as the words of `init_text`; see `embedding.create_embedding`, and for what it
        raises besides, `text_vectors`.

        Of a text with more tokens than vectors A1111 takes the first ones for CLIP-L, and samples evenly for OpenCLIP.
        """
        made = create_embedding(name, self.text_vectors(init_text), vectors, keep_first="clip_l" in self.encoders)
        return replace(made, metadata=self._unread_fact())

    def _unread_fact(self) -> dict[str, str]:
        return {UNREAD: ", ".join(self.unread)} if self.unread else {}

    def about_encoders(self) -> str:
        """Which text encoders embeddings are for, which not, and where plain prompts do not find them; some sentences
        for the person."""
        said = [f"For {', '.join(f'{key} (width {width})' for key, width in self.widths.items())}."]
        if self.left_out:
            takes = "take no part" if len(self.left_out) > 1 else "takes no part"
            said.append(f"{', '.join(self.left_out)} {takes}: no name of an embedding reaches it.")
        if self.unread:
            said.append(unread_text(", ".join(self.unread)))
        elif not self.names(f"{EMBEDDING}a", "a"):
            said.append(
                "This model does not find a name at the very start of a prompt: write a space or a word before it, as "
                "training and its previews do."
            )
        return " ".join(said)

    def word_norms(self) -> dict[str, float]:
        """Encoder key -> the norm of a usual word's vector: the median of the vocabulary's, or of `MEASURED_TOKENS` of
        its tokens, spread evenly. CLIP-L has about 0.4."""
        norms = {}
        for key, encoder in self.encoders.items():
            size = encoder.table.weight.shape[0]
            tokens = range(0, size, -(-size // MEASURED_TOKENS))
            norms[key] = float(encoder.vectors(tokens).norm(dim=1).median())
        return norms

    @torch.no_grad()
    @torch.random.fork_rng()  # layers are made anew, and filled at random first
    def read_back(self, embedding: Embedding, file: Path) -> float:
        """How far the conditioning of a prompt is off when the program reads the embedding in it from `file` by its own
        means, rather than being handed `embedding`: the largest difference, as a part of the largest number there is.

        0 is equal to the bit; infinite is another shape, or numbers that are not finite. Host and files are as they
        were afterwards. Raises OSError, UserError for what is no embedding, and what the host's text encoders do.
        """
        handed, read = self._encoded(embedding), self._encoded_from(file, embedding)
        if [tensor.shape for tensor in handed] != [tensor.shape for tensor in read]:
            return math.inf
        off = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(handed, read, strict=True)]
        return max(off) if all(map(math.isfinite, off)) else math.inf

    @abstractmethod
    def _encoded(self, embedding: Embedding) -> list[Tensor]:
        """What the text encoders make of a prompt that names `embedding`."""

    @abstractmethod
    def _encoded_from(self, file: Path, embedding: Embedding) -> list[Tensor]:
        """The same, with what the program's own reader finds in `file`, where `embedding` has been saved."""

    # Pictures and latents

    @property
    @abstractmethod
    def latent_multiple(self) -> int:
        """Pixels a side of a latent's cell; pictures are cropped to multiples of it."""

    @abstractmethod
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Pictures float32 [H, W, 3] in 0..1 -> latents float32 [C, ..., h, w] on the CPU, scaled as the model takes
        them. The same picture always gives the same latent."""

    def encoding(self) -> str:
        """What tells latents that `encode` makes of a picture from those of another VAE, scaling, type or device."""
        return self.identities()["vae"]

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents as `sample` makes them, [B, C, ..., h, w] -> pictures float32 [n, H, W, 3] in 0..1 on the CPU; of a
        VAE for videos, all their frames."""

    @property
    @abstractmethod
    def samplers(self) -> Sequence[str]:
        """What `Sampling.sampler` can be, besides ""."""

    @property
    @abstractmethod
    def schedulers(self) -> Sequence[str]:
        """What `Sampling.scheduler` can be, besides ""."""

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        shape: Sequence[int],
        sampling: Sampling,
        embeddings: Sequence[Embedding] = (),
    ) -> Tensor:
        """Generate pictures float32 [n, H, W, 3] in 0..1, one for each prompt and its seed; of a video, all its frames.

        shape: of a latent, [C, ..., h, w]. embeddings: those that prompts can name, besides what the host knows. The
        random state is as it was afterwards. Raises UserError as `check_fits`.
        """

    # Training

    @contextmanager
    def trainable(self, latent: Tensor, batch_size: int) -> Iterator[Any]:
        """Make the model one that gradients pass through, a `TrainableModel`, for the length of the block.

        latent: [C, ..., h, w], the largest there will be, with `batch_size` for how much memory to leave free. No
        weight is copied, and everything, torch's random state included, is as it was afterwards, whatever ends the
        block. Raises UserError for models that cannot be trained on.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng())
            model = self._load(latent, batch_size, stack)
            model.is_tolerant = self._is_tolerant
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(without_leftovers(*model.modules))
            stack.enter_context(ordinary_weights(*model.modules))
            for module in model.lean_modules():
                stack.enter_context(lean(module, model.recast))
            yield model
            self._is_tolerant = model.is_tolerant

    @abstractmethod
    def _load(self, latent: Tensor, batch_size: int, stack: ExitStack) -> TrainableModel:
        """The model, loaded and set to be trained on; what is to be undone afterwards goes on `stack`."""

    # What model this is

    @abstractmethod
    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The diffusion model's weights by name, without the patches on them."""

    @abstractmethod
    def identities(self) -> dict[str, str]:
        """16 hex digits each (`marks.mark`) for "model", "clip" and, where there is one, "vae", that tell them, patched
        as they are, from any that train otherwise.

        The same after the program was started again, and wherever weights are now; nothing is loaded for it.
        """

    def told(self) -> dict[str, Any]:
        """What the host was told of how to train, for a run's settings; of the kinds JSON knows."""
        return {}

    def found(self, name: str) -> str | None:
        """16 hex digits for the vectors that the program finds by itself where a prompt says `embedding:<name>`; None
        where it finds none, or looks for none."""
        return None

    def fingerprint(self) -> str:
        """16 hex digits that tell base models apart: with any LoRA on it, a model is the same one."""
        digest = hashlib.sha256()
        for name, tensor in self.weights():
            digest.update(f"{name}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().flatten()[:8].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, str]:
        """What an embedding's metadata says of the model it was trained on."""
        return {"textinv.base_model": self.fingerprint(), **self._unread_fact()}
