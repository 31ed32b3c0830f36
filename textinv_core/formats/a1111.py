"""The dictionary in which A1111 keeps an embedding, in `.pt` files and in pictures.

For one text encoder it is {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": ..., "step": ...,
"sd_checkpoint": ..., "sd_checkpoint_name": ...}, where 265 is CLIP's token for `*`. A1111 and ComfyUI pass over further
keys, so ours are among them: the text encoder, and the embedding's metadata. For SDXL it is {"clip_l": vectors,
"clip_g": vectors}, and with anything besides A1111 refuses the file.
"""

from typing import Any

from torch import Tensor

from ..embedding import Embedding, safe_name
from ..errors import UserError
from .facts import lasting
from .tensors import KEY_BY_WIDTH, known_keys, to_store, vectors_of

# Our name of a fact -> A1111's: the model an embedding was trained on, as ten hex digits and as the name of its file.
CHECKPOINT = {"textinv.sd_checkpoint": "sd_checkpoint", "textinv.sd_checkpoint_name": "sd_checkpoint_name"}


def to_data(embedding: Embedding, file: str) -> dict[str, Any]:
    """The dictionary for an embedding. With several text encoders it has no place for step and metadata.

    file: what it is for, to name in messages. Raises UserError where one of several encoders would not be found again.
    """
    if len(embedding.vectors) > 1:
        return known_keys(embedding, file)
    [(key, rows)] = to_store(embedding).items()
    facts = lasting(embedding.metadata)
    checkpoint = {theirs: facts.pop(ours, None) for ours, theirs in CHECKPOINT.items()}
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows},
        "name": embedding.name,
        "step": embedding.step,
        **checkpoint,
        "textinv.encoder": key,
        **facts,
    }


def from_data(data: Any, stem: str, file: str) -> Embedding:
    """The embedding in such a dictionary, or in one of any trainer's that has vectors under encoder keys or one key.
    As in ComfyUI it may also be a list of dictionaries, with one tensor for each text encoder.

    stem: the file's name without its suffix, after which the embedding is called. Raises UserError for anything else.
    """
    if isinstance(data, list):
        data = _by_width(data) or data
    if not isinstance(data, dict):
        raise UserError(f"{file!r} is no embedding: it holds a {type(data).__name__}, not vectors under names.")
    encoder = None
    tensors = data
    if "string_to_param" in data:
        # A dictionary, or as the first trainers had it, torch's ParameterDict.
        tensors = getattr(data["string_to_param"], "_parameters", data["string_to_param"])
        if not isinstance(tensors, dict) or len(tensors) != 1:
            raise UserError(f"{file!r} is no embedding of one name: its 'string_to_param' is not one tensor.")
        [(key, tensor)] = tensors.items()
        encoder = data.get("textinv.encoder")
        tensors = {encoder if isinstance(encoder, str) else key: tensor}
    tensors = {key: rows for key, rows in tensors.items() if isinstance(key, str) and isinstance(rows, Tensor)}
    facts = lasting(data | {ours: data[key] for ours, key in CHECKPOINT.items() if isinstance(data.get(key), str)})
    step = data.get("step")
    return Embedding(
        safe_name(stem),
        vectors_of(tensors, isinstance(encoder, str), file),
        step if type(step) is int and 0 <= step < 10**18 else None,
        facts,
    )


def _by_width(parts: list[Any]) -> dict[str, Tensor]:
    """The tensors of a list of dictionaries under the encoder keys that go with their widths; none if any has none."""
    tensors = [t for part in parts if isinstance(part, dict) for t in part.values() if isinstance(t, Tensor) and t.ndim]
    keyed = {KEY_BY_WIDTH.get(tensor.shape[-1]): tensor for tensor in tensors}
    return {key: tensor for key, tensor in keyed.items() if key} if len(keyed) == len(tensors) else {}
