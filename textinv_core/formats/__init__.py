"""Files <-> Embedding, by the file's suffix."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ..embedding import Embedding, safe_name
from ..errors import UserError
from ..picture_kinds import FURTHER_KINDS
from . import bin, image_embedding, pt, safetensors
from .bundles import bundled, chosen
from .image_embedding import is_marked

__all__ = [
    "FORMATS",
    "PICTURES",
    "check_suffix",
    "is_marked",
    "keeps_facts",
    "list_bundled",
    "load_embedding",
    "save_embedding",
]

PICTURES = (".png", ".webp", *FURTHER_KINDS)
FORMATS = {".safetensors": safetensors, ".pt": pt, ".bin": bin, **dict.fromkeys(PICTURES, image_embedding)}


def check_suffix(path: Path) -> None:
    """Raise UserError for a name that embedding files do not have."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path.name!r} is no embedding file: those end in {', '.join(FORMATS)}.")


def _format(path: Path) -> Any:
    """The module that reads and writes `path`. Raises as `check_suffix`."""
    check_suffix(path)
    return FORMATS[path.suffix.lower()]


def list_bundled(path: str | os.PathLike[str]) -> list[str]:
    """The names of the embeddings in a LoRA or other bundle, sorted, by the file's header alone; most files have none.

    `load_embedding` takes each of them. OSError where the file cannot be opened.
    """
    path = Path(path)
    return sorted(bundled(path)) if path.suffix.lower() == ".safetensors" else []


def load_embedding(path: str | os.PathLike[str], name: str | None = None) -> Embedding:
    """The embedding in a file, on the CPU, called after the file (see `safe_name`), one in a picture as stored there.

    name: of several embeddings in a `.safetensors` bundle the one to load, see `list_bundled`, which is then called so
    (see `safe_name`). Of all that such a file holds nothing else is read.

    Tensors of any float type become float32, a 1-D tensor one vector, and a single tensor under a key that is no
    encoder's gets the one that goes with its width. `step` is None where a file does not say; `metadata` keeps
    `textinv.*`, which A1111's `sd_checkpoint` and `sd_checkpoint_name` become, and those `modelspec.*` that hold for a
    changed embedding too. No code in a file is ever run.

    Raises UserError naming the file for an unknown suffix, a damaged file, other contents, values that are not finite,
    another `name` than there is, none where there are several, and for what no embedding has: vectors of more than 64
    MiB as float32, a file of more (`.safetensors` apart, of which no more is read), 10 million pixels; OSError where it
    cannot be opened.
    """
    path = Path(path)
    kind = _format(path)
    embedding = safetensors.read(path, name) if kind is safetensors else kind.read(path)
    if name is not None and safe_name(name) != embedding.name:
        chosen([embedding.name], name, path.name)
    return embedding


def keeps_facts(embedding: Embedding, path: str | os.PathLike[str]) -> bool:
    """Whether the kind of file that `path` names has a place for the embedding's `step` and `metadata`."""
    suffix = Path(path).suffix.lower()
    return suffix == ".safetensors" or (suffix != ".bin" and len(embedding.vectors) == 1)


def save_embedding(embedding: Embedding, path: str | os.PathLike[str], picture: Tensor | None = None) -> None:
    """Write an embedding to a file, whole or not at all, replacing what was there.

    path: its folder must exist. Prompts find the embedding by the file's name, which is its trigger phrase.
    picture: for `.png`, the picture to keep it in, float32 [H, W, 3] in 0..1, best 64 x 64 or larger. What is written
        is wider, and has the embedding's name, model, vectors and steps on it; of more than 7 million pixels it is
        made smaller. The picture itself stays as it is.

    `.safetensors` keep everything, `.pt` and `.png` also, unless there are several text encoders: those and `.bin` have
    no place for `step` and `metadata`. Raises UserError for an unknown suffix, a missing or too small picture, and for
    text encoders that could not be told from the file again; OSError where it cannot be written.
    """
    path = Path(path)
    if _format(path) is image_embedding:
        image_embedding.write(embedding, path, picture)
    else:
        _format(path).write(embedding, path)
