"""Embeddings in `.pt`: A1111's, and whatever else trainers write with `torch.save`."""

from pathlib import Path

from ..embedding import Embedding
from ..files import write_atomically
from . import a1111
from .limits import MAX_FILE_BYTES
from .pickles import dump, load


def read(path: Path) -> Embedding:
    """Read an embedding of A1111, diffusers, kohya or others; see `load_embedding`."""
    return a1111.from_data(load(path, MAX_FILE_BYTES), path.stem, path.name)


def write(embedding: Embedding, path: Path) -> None:
    """Write `embedding` so that A1111, ComfyUI and diffusers read it; see `save_embedding`."""
    write_atomically(path, dump(a1111.to_data(embedding, path.name)))
