"""The text encoders of a ComfyUI CLIP: what they are fed, embeddings that prompts name, prompts encoded together."""

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor

from ..prompts import EMBEDDING, read_name
from .autograd import replaced_method
from .base import Encoder, Find


@dataclass(frozen=True)
class ComfyEncoder(Encoder):
    """One text encoder of a CLIP: where its tokenizer hangs, that tokenizer, its model, and the CLIP."""

    attribute: str
    tokenizer: SDTokenizer
    model: SDClipModel
    clip: Any

    @property
    def table(self) -> Any:  # type: ignore[override]
        return self.model.transformer.get_input_embeddings()

    def tokens(self, text: str) -> list[tuple[int | Tensor, float]]:
        windows = self.tokenizer.tokenize_with_weights(text, return_word_ids=True)
        return [(token, weight) for window in windows for token, weight, word in window if word != 0]

    def vectors(self, tokens: Sequence[int]) -> Tensor:
        self.clip.load_model()
        ids = torch.tensor(tokens, device=self.clip.patcher.load_device)
        return self.table(ids, out_dtype=torch.float32).to("cpu", torch.float32)


def encoders(clip: Any) -> dict[str, ComfyEncoder]:
    """The text encoders of `clip` that take embeddings, by encoder key; none for some families."""
    by_key = {}
    for attribute, tokenizer in vars(clip.tokenizer).items():
        model = getattr(clip.cond_stage_model, attribute, None)
        reads_embeddings = isinstance(tokenizer, SDTokenizer) and tokenizer.embedding_directory is not None
        if reads_embeddings and isinstance(model, SDClipModel):
            by_key[tokenizer.embedding_key] = ComfyEncoder(attribute, tokenizer, model, clip)
    return by_key


@dataclass(frozen=True)
class _TryGetEmbedding:
    """`SDTokenizer._try_get_embedding` that knows more names: gives vectors, name, and the text left over.

    A value, no closure: a CLIP that has it can be copied and pickled as others can.
    """

    host_finds: Any
    key: str
    find: Find

    def __call__(self, text: str) -> tuple[Any, str, str]:
        name, leftover = read_name(text)
        vectors = self.find(self.key, name) if name else None
        return self.host_finds(text) if vectors is None else (vectors, name, leftover)


def tokenizer_with(clip: Any, find: Find) -> Any:
    """A copy of `clip.tokenizer` for which `embedding:<name>` is what `find` gives, where it gives something."""
    tokenizer = copy.copy(clip.tokenizer)
    for key, encoder in encoders(clip).items():
        own = copy.copy(encoder.tokenizer)
        own._try_get_embedding = _TryGetEmbedding(encoder.tokenizer._try_get_embedding, key, find)
        setattr(tokenizer, encoder.attribute, own)
    return tokenizer


class _SharedRun:
    """`encode` of a text encoder, run once for the windows of several prompts, and handed out prompt by prompt."""

    def __init__(self, encode: Callable[[list[list]], Any], windows: Sequence[list[list]]):
        self._encode, self._windows = encode, windows
        self._starts = [0, *itertools.accumulate(len(each) for each in windows)]

    @cached_property
    def _result(self) -> Any:
        return self._encode([window for each in self._windows for window in each])

    def part(self, prompt: int, to_encode: list[list]) -> Any:
        """What `encode` would give for the windows of one prompt."""
        here = slice(self._starts[prompt], self._starts[prompt + 1])
        z, pooled, *extra = self._result
        z, pooled = z[here], None if pooled is None else pooled[here]
        extra = [{key: value[here] for key, value in each.items()} for each in extra]
        if len(to_encode) == len(self._windows[prompt]):
            return z, pooled, *extra
        # Where words have weights, the host asks for an empty prompt behind the windows.
        z_empty, pooled_empty, *_ = self._encode(to_encode[len(self._windows[prompt]) :])
        return torch.cat([z, z_empty]), None if pooled is None else torch.cat([pooled, pooled_empty]), *extra


def encode_together(clip: Any, prompts: Sequence[dict[str, list]]) -> list[list]:
    """The host's conditionings of tokenised prompts, which it encodes one by one, each text encoder run once for all.

    Text encoders are deep and narrow, and their weights may have to be cast: a batch of prompts costs little more than
    one.
    """
    shared = []
    for encoder in encoders(clip).values() if len(prompts) > 1 else ():
        key = encoder.attribute if encoder.attribute in prompts[0] else encoder.attribute.removeprefix("clip_")
        windows = [[[token for token, _ in window] for window in prompt.get(key, [])] for prompt in prompts]
        # T5 pads to no common length; it has to take its prompts one by one.
        if len({len(window) for each in windows for window in each}) == 1 and all(windows):
            encode: Any = encoder.model.encode
            shared.append((encoder.model, _SharedRun(encode, windows)))
    encoded = []
    for number, prompt in enumerate(prompts):
        with ExitStack() as stack:
            for model, run in shared:
                own_part = partial(run.part, number)
                stack.enter_context(replaced_method(model, "encode", lambda _, own_part=own_part: own_part))
            encoded.append(clip.encode_from_tokens_scheduled(prompt, show_pbar=False))
    return encoded


def encoded(clip: Any, name: str) -> list[Tensor]:
    """The tensors of a conditioning, as CLIPTextEncode makes it, whose prompt is an embedding."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(f"{EMBEDDING}{name}"), show_pbar=False)
    found = [tensor for cond, more in conditioning for tensor in (cond, *more.values())]
    return [tensor.float() for tensor in found if isinstance(tensor, Tensor)]
