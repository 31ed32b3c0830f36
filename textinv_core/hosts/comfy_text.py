"""The text encoders of a ComfyUI CLIP: what they are fed, embeddings that prompts name, prompts encoded together."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor

from ..prompts import EMBEDDING, read_name
from .autograd import pointer, replaced_method
from .base import Encoder, Find

# A name no embedding has, and words with a weight, to see what becomes of them; it stands where LLMs' templates put it.
PROBE_NAME, PROBE_WEIGHT = "textinv-probe", 1.5
PROBE = f"a (red:{PROBE_WEIGHT}) {EMBEDDING}{PROBE_NAME} hat"


@dataclass(frozen=True)
class ComfyEncoder(Encoder):
    """One text encoder of a CLIP that takes embeddings.

    attribute: where its tokenizer hangs. tokens_key: under which the host hands its tokens on. as_dicts: whether
    vectors among them have to be dictionaries, because host code compares tokens with numbers. reads_weights: whether
    `(words:1.2)` in a prompt are weighted. reads_files: whether plain prompts find files of embeddings.
    """

    attribute: str
    tokens_key: str
    tokenizer: SDTokenizer
    model: SDClipModel
    clip: Any
    as_dicts: bool
    reads_weights: bool
    reads_files: bool  # type: ignore[override]

    @property
    def table(self) -> Any:  # type: ignore[override]
        return self.model.transformer.get_input_embeddings()

    def tokens(self, text: str) -> list[tuple[int | Tensor, float]]:
        more = {} if self.reads_weights else {"disable_weights": True}
        windows = self.tokenizer.tokenize_with_weights(text, return_word_ids=True, **more)
        return [(_vector(token), weight) for window in windows for token, weight, word in window if word != 0]

    def found(self, name: str) -> Any:
        """The vectors that the host finds for a name by itself; None for none."""
        is_looking = self.tokenizer.embedding_directory is not None
        return self.tokenizer._try_get_embedding(name)[0] if is_looking else None

    def vectors(self, tokens: Sequence[int]) -> Tensor:
        self.clip.load_model(self.clip.tokenize("a"))  # from whose length some tell how much memory it takes
        ids = torch.tensor(tokens, device=self.clip.patcher.load_device)
        return self.table(ids, out_dtype=torch.float32).to("cpu", torch.float32)


def _vector(token: Any) -> Any:
    """A token, or the vector in one that is a dictionary."""
    return token["data"] if isinstance(token, dict) else token


class _Dicts:
    """Vectors as the host also takes them among tokens, where code of its own compares those with numbers."""

    def __init__(self, vectors: Tensor):
        self._vectors, self.shape = vectors, vectors.shape

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"type": "embedding", "data": self._vectors[number]}


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
        if vectors is not None:
            return self.handed(vectors), name, leftover
        if name and getattr(getattr(self.host_finds, "__self__", None), "embedding_directory", ()) is None:
            return None, name, leftover  # where the host looks for none
        return self.host_finds(text)

    def handed(self, vectors: Tensor) -> Any:
        return vectors


class _TryGetDicts(_TryGetEmbedding):
    """The same where they have to be dictionaries."""

    def handed(self, vectors: Tensor) -> Any:
        return _Dicts(vectors)


def _leave_out(text: str) -> tuple[Tensor, str, str]:
    """`SDTokenizer._try_get_embedding` where tokens have to be numbers: no name gives any."""
    return torch.empty(0, 1), *read_name(text)


def _tokenizers(clip: Any) -> dict[str, SDTokenizer]:
    """The tokenizers of a CLIP that have the host's way to read embeddings, by attribute."""
    return {name: each for name, each in vars(clip.tokenizer).items() if isinstance(each, SDTokenizer)}


def _finding(tokenizer: SDTokenizer, finds: Any) -> SDTokenizer:
    """A copy of `tokenizer` that asks `finds` for embeddings, which some do not look for."""
    own = copy.copy(tokenizer)
    own._try_get_embedding = finds
    if own.embedding_directory is None:
        own.embedding_directory = []
    return own


def _with(clip: Any, tokenizers: Mapping[str, SDTokenizer]) -> Any:
    """A copy of the CLIP's tokenizer with `tokenizers` in place of its own."""
    tokenizer = copy.copy(clip.tokenizer)
    for attribute, each in tokenizers.items():
        setattr(tokenizer, attribute, each)
    return tokenizer


def _asked(clip: Any, tokenizers: Mapping[str, SDTokenizer], as_dicts: bool) -> dict[str, tuple[str, bool]] | None:
    """What a prompt that names an embedding comes to where these tokenizers of the CLIP's find it: attribute -> the key
    of the tokens that the vectors turn up among, and whether words have weights there. None where that fails."""
    probed = copy.copy(clip)
    rows = {attribute: torch.zeros(2, 4) for attribute in tokenizers}

    def finds(attribute: str) -> Any:
        return (_TryGetDicts if as_dicts else _TryGetEmbedding)(None, attribute, lambda key, name: rows[key])

    probed.tokenizer = _with(clip, {name: _finding(each, finds(name)) for name, each in tokenizers.items()})
    try:
        tokens = probed.tokenize(PROBE)
    except Exception:  # host code, and anybody's, that takes vectors for numbers raises whatever it likes
        return None
    found: dict[str, tuple[str, bool]] = {}
    for key, windows in tokens.items():
        if not isinstance(windows, list) or not all(isinstance(window, list) for window in windows):
            continue  # what some families tell their encoders besides
        pairs = [pair for window in windows for pair in window]
        weighs = any(pair[1] == PROBE_WEIGHT for pair in pairs)
        vectors = [_vector(pair[0]) for pair in pairs]
        for attribute, own in rows.items():
            if any(isinstance(each, Tensor) and pointer(each) == pointer(own) for each in vectors):
                found.setdefault(attribute, (key, weighs))
    return found


def _stock(tokenizer: SDTokenizer) -> SDTokenizer:
    """`tokenizer` as it was before embeddings were applied to it."""
    finds: Any = tokenizer._try_get_embedding
    while isinstance(finds, _TryGetEmbedding):
        finds = finds.host_finds
    return getattr(finds, "__self__", tokenizer)


_NOWHERE = object()


def _model(clip: Any, attribute: str) -> Any:
    """The model that belongs to a tokenizer; None where it is not loaded, `_NOWHERE` where the CLIP has none."""
    models = clip.cond_stage_model
    return getattr(models, attribute, getattr(models, attribute.removeprefix("clip_"), _NOWHERE))


def _read_by_plain_prompts(clip: Any) -> set[str]:
    """The attributes of the tokenizers through which a plain prompt finds embeddings in files: none where it fails on
    one, because vectors are compared with numbers there, or taken for such by what is no model."""
    stock = {name: _stock(each) for name, each in _tokenizers(clip).items()}
    looking = {name: each for name, each in stock.items() if each.embedding_directory is not None}
    found = _asked(clip, looking, as_dicts=False) or {}
    return set() if any(_model(clip, attribute) is _NOWHERE for attribute in found) else set(found)


def encoders(clip: Any) -> dict[str, ComfyEncoder]:
    """The text encoders of `clip` that take embeddings, by encoder key; none for some families.

    Those are whose tokenizer asks for the name in a prompt, and hands what it gets on to a model. In the order of the
    tokenizers, in which states of trainings have their tensors.
    """
    tokenizers = _tokenizers(clip)
    asked = _asked(clip, tokenizers, as_dicts=False)
    as_dicts = asked is None
    asked = _asked(clip, tokenizers, as_dicts=True) or {} if asked is None else asked
    read = _read_by_plain_prompts(clip)
    by_key = {}
    for attribute, tokenizer in tokenizers.items():
        model = _model(clip, attribute)
        if attribute in asked and isinstance(model, SDClipModel):
            by_key[tokenizer.embedding_key] = ComfyEncoder(
                attribute, asked[attribute][0], tokenizer, model, clip, as_dicts, asked[attribute][1], attribute in read
            )
    return by_key


def tokenizer_with(clip: Any, encoders: Mapping[str, ComfyEncoder], find: Find) -> Any:
    """A copy of `clip.tokenizer` for which `embedding:<name>` is what `find` gives, where it gives something."""
    own = {}
    for key, encoder in encoders.items():
        finds = (_TryGetDicts if encoder.as_dicts else _TryGetEmbedding)(
            encoder.tokenizer._try_get_embedding, key, find
        )
        own[encoder.attribute] = _finding(encoder.tokenizer, finds)
    for attribute, tokenizer in _tokenizers(clip).items():
        if _model(clip, attribute) is _NOWHERE:
            own[attribute] = _finding(tokenizer, _leave_out)
    return _with(clip, own)


def _flat(windows: Sequence[list]) -> list:
    return [token for window in windows for token in window]


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
        own = self._windows[prompt]
        if len(to_encode) < len(own) or any(a is not b for a, b in zip(_flat(own), _flat(to_encode), strict=False)):
            return self._encode(to_encode)  # an encoder that runs more than once for a prompt, on something else
        here = slice(self._starts[prompt], self._starts[prompt + 1])
        z, pooled, *extra = self._result
        z, pooled = z[here], None if pooled is None else pooled[here]
        extra = [{key: value[here] for key, value in each.items()} for each in extra]
        if len(to_encode) == len(self._windows[prompt]):
            return z, pooled, *extra
        # Where words have weights, the host asks for an empty prompt behind the windows.
        z_empty, pooled_empty, *_ = self._encode(to_encode[len(self._windows[prompt]) :])
        return torch.cat([z, z_empty]), None if pooled is None else torch.cat([pooled, pooled_empty]), *extra


def encode_together(clip: Any, encoders: Mapping[str, ComfyEncoder], prompts: Sequence[dict[str, list]]) -> list[list]:
    """The host's conditionings of tokenised prompts, which it encodes one by one, each text encoder run once for all.

    Text encoders are deep and narrow, and their weights may have to be cast: a batch of prompts costs little more than
    one.
    """
    shared = []
    for encoder in encoders.values() if len(prompts) > 1 else ():
        windows = [[[pair[0] for pair in window] for window in prompt[encoder.tokens_key]] for prompt in prompts]
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
    """The tensors of a conditioning, as CLIPTextEncode makes it, whose prompt is an embedding behind a word: some
    tokenizers do not find one that comes first."""
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(f"a {EMBEDDING}{name}"), show_pbar=False)
    found = [tensor for cond, more in conditioning for tensor in (cond, *more.values())]
    return [tensor.float() for tensor in found if isinstance(tensor, Tensor)]
