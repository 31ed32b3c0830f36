"""Embeddings in `.pt`: A1111's, and whatever else trainers write with `torch.save`.

Such a file is a pickle, which can ask for any function to be called when it is opened. torch only allows those that
make tensors; before that, none is opened here that asks for more than an embedding needs, or unpacks to more than one
can hold.
"""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..embedding import Embedding
from ..files import write_atomically
from . import a1111
from .vectors import MAX_FILE_BYTES, read_bytes

MAX_PICKLE_BYTES = 1024 * 1024
ZIP_MAGIC = b"PK\3\4"
LEGACY_PICKLES = 5  # magic number, version, system, the object itself, keys of the storages; then come the storages

PARAMETERS = "torch.nn.modules.container.ParameterDict"
# What the pickle of an embedding names.
NEEDED = {
    "__builtin__.set",
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    PARAMETERS,
    *(f"torch.{kind}Storage" for kind in ("BFloat16", "Double", "Float", "Half", "Int", "Long")),
}


class _Parameters:
    """Stands in for torch's ParameterDict: keeps what the file has for it, and can do nothing."""


def _pickles(data: bytes) -> list[bytes]:
    """The pickles in a file of `torch.save`, old kind or zip. Raises ValueError for more than can be meant."""
    if data[:4] != ZIP_MAGIC:
        return [data[:MAX_PICKLE_BYTES]]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if (size := sum(member.file_size for member in members)) > MAX_FILE_BYTES:
            raise ValueError(
                f"it unpacks to {size / 2**20:.0f} MiB, embeddings have {MAX_FILE_BYTES / 2**20:.0f} at most"
            )
        pickles = []
        for member in members:
            if member.filename.endswith(".pkl"):
                with archive.open(member) as file:
                    pickles.append(file.read(MAX_PICKLE_BYTES))
    return pickles


def _names(data: bytes) -> set[str]:
    """All that the pickles of a file ask Python for, found without opening them."""
    found = set()
    for pickled in _pickles(data):
        file = io.BytesIO(pickled)
        for _ in range(1 if data[:4] == ZIP_MAGIC else LEGACY_PICKLES):
            # torch knows no other way than GLOBAL to name something, and opens nothing that has one.
            found |= {
                str(name).replace(" ", ".") for code, name, _ in pickletools.genops(file) if code.name == "GLOBAL"
            }
    return found


def load(path: Path) -> Any:
    """What `torch.save` put into a file: dictionaries, lists, numbers, text and tensors on the CPU, nothing else.

    Raises ValueError for a damaged file, for more than 256 MiB, packed or not, and for one that asks for functions that
    no embedding needs. None of them is ever called.
    """
    data = read_bytes(path)
    try:
        harmful = sorted(_names(data) - NEEDED)
        if not harmful:
            with torch.serialization.safe_globals([(_Parameters, PARAMETERS)]):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # on broken files torch and pickle raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch would advise to open it without protection
            reason = "there is more in it than text, numbers and tensors"
        raise ValueError(f"{path.name!r} cannot be read as a file of torch: {reason}. Is it whole?") from None
    raise ValueError(
        f"{path.name!r} was not opened: it would have Python run {', '.join(name[:60] for name in harmful[:4])}, which "
        "no embedding needs. Such a file can harm the computer it is opened on: get the embedding as .safetensors."
    )


def dump(data: Any) -> bytes:
    """`data` as `torch.save` writes it, in its older form.

    A1111 opens a zip only if it knows the name of every member, and torch has added some since.
    """
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def read(path: Path) -> Embedding:
    """Read an embedding of A1111, diffusers, kohya or others; see `load_embedding`."""
    return a1111.from_data(load(path), path.stem, path.name)


def write(embedding: Embedding, path: Path) -> None:
    """Write `embedding` so that A1111, ComfyUI and diffusers read it; see `save_embedding`."""
    write_atomically(path, dump(a1111.to_data(embedding, path.name)))
