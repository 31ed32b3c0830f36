"""Files <-> Embedding, by the file's suffix."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..embedding import Embedding
from ..errors import UserError
from . import bin, image_embedding, pt, safetensors

FORMATS = {".safetensors": safetensors, ".pt": pt, ".bin": bin, ".png": image_embedding, ".webp": image_embedding}


def _format(path: Path) -> Any:
    """The module that reads and writes `path`; UserError for a suffix without one."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path.name!r} is no embedding file: those end in {', '.join(FORMATS)}.")
    return FORMATS[path.suffix.lower()]


def load_embedding(path: str | os.PathLike[str]) -> Embedding:
    """The embedding in a file, on the CPU, called after the file (see `safe_name`), one in a picture as stored there.

    Tensors of any float type become float32, a 1-D tensor one vector, and a single tensor under a key that is no
    encoder's gets the one that goes with its width. `step` is None where a file does not say; `metadata` keeps
    `textinv.*`, which A1111's `sd_checkpoint` and `sd_checkpoint_name` become, and those `modelspec.*` that hold for a
    changed embedding too. No code in a file is ever run.

    Raises UserError naming the file for an unknown suffix, a damaged file, other contents, values that are not finite,
    and for what no embedding has: vectors of more than 64 MiB as float32, a file of more (`.safetensors` apart, of
    which no more is read), 10 million pixels; OSError where it cannot be opened.
    """
    path = Path(path)
    return _format(path).read(path)


def save_embedding(embedding: Embedding, path: str | os.PathLike[str], picture: Tensor | None = None) -> None:
    """Write an embedding to a file, whole or not at all, replacing what was there.

    path: its folder must exist. Prompts find the embedding by the file's name, which is its trigger phrase.
    picture: for `.png`, the picture to keep it in, float32 [H, W, 3] in 0..1, which gets wider; best 64 x 64 or larger.

    `.safetensors` keep everything, `.pt` and `.png` also, unless there are several text encoders: those and `.bin` have
    no place for `step` and `metadata`. Raises UserError for an unknown suffix, a missing or too small picture, and for
    text encoders that could not be told from the file again; OSError where it cannot be written.
    """
    path = Path(path)
    if _format(path) is image_embedding:
        image_embedding.write(embedding, path, picture)
    else:
        _format(path).write(embedding, path)
