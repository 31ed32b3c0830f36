"""Tensors as files store them <-> vectors under encoder keys."""

import logging
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..embedding import Embedding
from ..errors import UserError
from .limits import MAX_TENSOR_BYTES, check_total

T5 = "t5xxl"
# ComfyUI's keys of the encoders that take embeddings: in files of other programs, and where nothing but the key tells
# what a tensor is, none but these. Files of our own may use any, also of encoders to come.
ENCODER_KEYS = {
    *("clip_l", "clip_g", "clip_h", "jina_clip_2", "chinese_roberta", T5, "umt5xxl", "mt5xl", "pile_t5xl", "llama"),
    *("gemma2_2b", "gemma3_4b", "gemma3_12b", "ministral3_3b", "mistral3_24b", "qwen25_3b", "qwen25_7b"),
    *("qwen3_06b", "qwen3_2b", "qwen3_4b", "qwen3_8b", "qwen3vl_4b", "qwen3vl_8b", "qwen3vl_32b"),
}
# What any of them looks like: keys get into messages, tables and the names of tensors.
# In a .safetensors the first two would make it one that nobody can read, or a bundle.
KEY_PATTERN = re.compile(r"(?!__metadata__$|bundle_emb\.)[A-Za-z0-9_.-]{1,64}")
KEY_BY_WIDTH = {768: "clip_l", 1280: "clip_g", 1024: "clip_h", 4096: T5}
# What OneTrainer, and diffusers' training of Flux, call T5. A .safetensors of ours has its vectors under both keys.
T5_ELSEWHERE = "t5"
# What OneTrainer calls vectors that are put in after the text encoder: the key of those put in before it, and this.
AFTER = "_out"
KEYS_AFTER = {f"{key}{AFTER}" for key in (*ENCODER_KEYS, T5_ELSEWHERE, "emp_params")}

log = logging.getLogger("textinv")


def vectors_of(tensors: Mapping[str, Tensor], ours: bool, file: str) -> dict[str, Tensor]:
    """Tensors as stored -> encoder key -> float32 [n, dim], in memory of their own. A 1-D tensor is one vector.

    ours: whether the keys are known to be encoder keys. Otherwise a single tensor under another key (`emb_params`,
    `emp_params`, `*`, ...) gets the key that goes with its width, OneTrainer's `t5` is `t5xxl`, and its output vectors
    (`clip_l_out`, ...) are left out, with a line in the log. `t5` beside an equal `t5xxl` is the same once more.

    Raises UserError for none, for what are no vectors, for T5's twice and not the same, and for keys that are no
    encoder's: those have 1 to 64 letters (A-Z), digits, `_`, `.` and `-`.
    """
    if not ours:
        tensors = _before_encoders(tensors, file)
    if not tensors:
        raise UserError(f"{file!r} is no embedding: it holds no vectors.")
    check_total(counted({key: tensor.shape for key, tensor in tensors.items()}), MAX_TENSOR_BYTES, file)
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim not in (1, 2) or tensor.numel() == 0:
            raise UserError(
                f"{file!r} is no embedding: {key[:64]!r} is {tensor.dtype} of shape {list(tensor.shape)}, not vectors."
            )
    if not ours and not tensors.keys() <= {*ENCODER_KEYS, T5_ELSEWHERE}:
        tensors = {_key_by_width(tensors, file): tensor for tensor in tensors.values()}
    vectors = {}
    for key, tensor in tensors.items():
        if not KEY_PATTERN.fullmatch(key):
            raise UserError(f"{file!r} is no embedding: it holds vectors for {key[:64]!r}, which is no text encoder.")
        # A copy, because stored tensors may be the mapped file.
        vectors[key] = torch.atleast_2d(tensor.detach()).to(torch.float32, copy=True)
        # Of least and greatest, because isfinite() takes as much memory again.
        if not torch.stack(torch.aminmax(vectors[key])).isfinite().all():
            raise UserError(f"{file!r} is damaged: {key!r} holds values that are not finite numbers.")
    return _t5_once(vectors, ours, file)


def counted(shapes: Mapping[str, Sequence[int]]) -> list[Sequence[int]]:
    """The shapes of a file's tensors, T5's once where they are there as `t5` and as `t5xxl`: one will be kept."""
    twice = T5 in shapes and list(shapes[T5]) == list(shapes.get(T5_ELSEWHERE, ()))
    return [shape for key, shape in shapes.items() if not (twice and key == T5_ELSEWHERE)]


def _t5_once(vectors: dict[str, Tensor], ours: bool, file: str) -> dict[str, Tensor]:
    """`vectors` with T5's under ComfyUI's key alone. In a file of ours that has none such, `t5` is another encoder."""
    if T5_ELSEWHERE not in vectors or (ours and T5 not in vectors):
        return vectors
    if T5 in vectors and not torch.equal(vectors[T5], vectors[T5_ELSEWHERE]):
        raise UserError(
            f"{file!r} holds vectors for the same text encoder twice, as {T5_ELSEWHERE!r} and as {T5!r}, and they "
            f"differ: OneTrainer trains {T5_ELSEWHERE!r} and leaves {T5!r}, which ComfyUI reads, as it was. Save the "
            "file without the older of them."
        )
    return {T5 if key == T5_ELSEWHERE else key: rows for key, rows in vectors.items()}


def _before_encoders(tensors: Mapping[str, Tensor], file: str) -> Mapping[str, Tensor]:
    """Those that prompts can use."""
    if after := sorted(tensors.keys() & KEYS_AFTER):
        what = f"{', '.join(after)}: vectors that OneTrainer puts in after the text encoder"
        what += ", where no prompt of ComfyUI or A1111 can"
        if len(after) == len(tensors):
            raise UserError(f"{file!r} holds only {what}. Train it there without output embeddings to use it here.")
        log.warning("%r is read without %s.", file, what)
    return {key: tensor for key, tensor in tensors.items() if key not in KEYS_AFTER}


def _key_by_width(tensors: Mapping[str, Tensor], file: str) -> str:
    """The encoder key that goes with the width of the only tensor."""
    if len(tensors) > 1:
        keys = ", ".join(repr(key[:64]) for key in list(tensors)[:4])
        raise UserError(f"{file!r} is no embedding: it holds {len(tensors)} tensors ({keys}, ...), not encoder keys.")
    [(key, tensor)] = tensors.items()
    width = tensor.shape[-1]
    if width not in KEY_BY_WIDTH:
        known = ", ".join(f"{width} ({key})" for width, key in KEY_BY_WIDTH.items())
        raise UserError(f"{file!r} holds vectors of width {width} under {key[:64]!r}; widths known are {known}.")
    return KEY_BY_WIDTH[width]


def to_store(embedding: Embedding) -> dict[str, Tensor]:
    """An embedding's vectors in new memory each: what writes tensors refuses shared memory, or writes all of it."""
    return {
        key: rows.detach().cpu().clone(memory_format=torch.contiguous_format) for key, rows in embedding.vectors.items()
    }


def known_keys(embedding: Embedding, file: str) -> dict[str, Tensor]:
    """`to_store`, for kinds of files in which only the keys say that these are vectors, and for which encoder.

    Raises UserError where other programs, or we ourselves, would not know a key again.
    """
    if unknown := embedding.vectors.keys() - ENCODER_KEYS:
        raise UserError(
            f"{file!r} cannot be written: in this kind of file nobody would find the vectors for "
            f"{', '.join(sorted(unknown))}. Write .safetensors."
        )
    return to_store(embedding)
