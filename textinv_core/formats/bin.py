"""Embeddings in `.bin`, as diffusers wrote them before safetensors: {"<cat>": vectors}, in a file of `torch.save`."""

from pathlib import Path

from ..embedding import Embedding
from ..files import write_atomically
from .pickles import dump
from .pt import read
from .tensors import KEY_BY_WIDTH, known_keys

__all__ = ["read", "write"]


def write(embedding: Embedding, path: Path) -> None:
    """Write `embedding` as a tensor under its name; see `save_embedding`. The file has no place for anything else.

    The name gets `<` and `>`, as is usual there: diffusers takes no name that is a word. Where the width of the vectors
    does not tell their text encoder, and where there are several, they stand under the encoders' keys.
    """
    tensors = known_keys(embedding, path.name)
    if len(tensors) == 1 and [KEY_BY_WIDTH.get(rows.shape[1]) for rows in tensors.values()] == list(tensors):
        tensors = {f"<{embedding.name}>": rows for rows in tensors.values()}
    write_atomically(path, dump(tensors))
