"""Files <-> Embedding, by the file's suffix."""

import os
from pathlib import Path

from ..embedding import Embedding
from . import safetensors

FORMATS = {".safetensors": safetensors}


def _format(path: Path):
    """The module that reads and writes `path`; ValueError for a suffix without one."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path.name!r} is no embedding file: {', '.join(FORMATS)} can be read and written.")
    return FORMATS[path.suffix.lower()]


def load_embedding(path: str | os.PathLike[str]) -> Embedding:
    """The embedding in a file, on the CPU, called after the file (see `safe_name`).

    Tensors of any float type become float32, a 1-D tensor one vector, and a single tensor under a key that is no
    encoder's gets the one that goes with its width. `step` is None in files of other programs; `metadata` keeps
    `textinv.*` and those `modelspec.*` that hold for a changed embedding too. No code in a file is ever run.

    Raises ValueError naming the file for an unknown suffix, more than 256 MiB, a damaged file, other contents,
    or values that are not finite; OSError where it cannot be opened.
    """
    path = Path(path)
    return _format(path).read(path)


def save_embedding(embedding: Embedding, path: str | os.PathLike[str]) -> None:
    """Write an embedding to a file, whole or not at all, replacing what was there.

    path: its folder must exist. Prompts find the embedding by the file's name, which is its trigger phrase.

    Raises ValueError for an unknown suffix, OSError where it cannot be written.
    """
    path = Path(path)
    _format(path).write(embedding, path)
