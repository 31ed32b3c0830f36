"""Files of `torch.save`, opened without harm.

Such a file is a pickle, which can ask for any function to be called when it is opened. torch only allows those that
make tensors; before that, none is opened here that asks for more than its reader needs, or unpacks to more than one
can hold.
"""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from .limits import read_bytes

MAX_PICKLE_BYTES = 1024 * 1024  # without the tensors' numbers, which stand beside it
ZIP_MAGIC = b"PK\3\4"
LEGACY_PICKLES = 5  # magic number, version, system, the object itself, keys of the storages; then come the storages

# What the pickle of tensors in dictionaries names.
TENSOR_NAMES = {
    "collections.OrderedDict",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    *(f"torch.{kind}Storage" for kind in ("BFloat16", "Double", "Float", "Half", "Int", "Long")),
}
PARAMETERS = "torch.nn.modules.container.ParameterDict"


class _Parameters:
    """Stands in for torch's ParameterDict: keeps what the file has for it, and can do nothing."""


def _pickles(data: bytes, max_bytes: int) -> list[bytes]:
    """The pickles in a file of `torch.save`, old kind or zip. Raises ValueError for more than can be meant."""
    if data[:4] != ZIP_MAGIC:
        return [data[:MAX_PICKLE_BYTES]]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if (size := sum(member.file_size for member in members)) > max_bytes:
            raise ValueError(
                f"it unpacks to {size / 2**20:.0f} MiB, and {max_bytes / 2**20:.0f} are the most that is read"
            )
        pickles = []
        for member in members:
            if member.filename.endswith(".pkl"):
                with archive.open(member) as file:
                    pickles.append(file.read(MAX_PICKLE_BYTES))
    return pickles


def _names(data: bytes, max_bytes: int) -> set[str]:
    """All that the pickles of a file ask Python for, read off without opening them."""
    names = set()
    for pickled in _pickles(data, max_bytes):
        file = io.BytesIO(pickled)
        for _ in range(1 if data[:4] == ZIP_MAGIC else LEGACY_PICKLES):
            # torch knows no other way than GLOBAL to name something, and opens nothing that has one.
            names |= {
                str(name).replace(" ", ".") for code, name, _ in pickletools.genops(file) if code.name == "GLOBAL"
            }
    return names


def load(path: Path, allowed: Set[str], max_bytes: int) -> Any:
    """What `torch.save` put into a file: dictionaries, lists, numbers, text and tensors on the CPU, nothing else.

    allowed: the functions and classes the file may ask for, `<module>.<name>`, of those torch's own safe reader knows
        and `PARAMETERS`, which comes back as an empty object whose attributes are what the file has for it.
    max_bytes: of the file, packed or not.

    Raises UserError for a damaged file, for more than `max_bytes`, and for one that asks for anything else than
    `allowed`. None of that is ever called.
    """
    data = read_bytes(path, max_bytes)
    try:
        harmful = sorted(_names(data, max_bytes) - allowed)
        if not harmful:
            with torch.serialization.safe_globals([(_Parameters, PARAMETERS)]):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # on broken files torch and pickle raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch would advise to open it without protection
            reason = "there is more in it than text, numbers and tensors"
        raise UserError(f"{path.name!r} cannot be read as a file of torch: {reason}. Is it whole?") from None
    raise UserError(
        f"{path.name!r} was not opened: it would have Python run {', '.join(name[:60] for name in harmful[:4])}, which "
        "no file of its kind needs. Such a file can harm the computer it is opened on: get it as .safetensors."
    )


def dump(data: Any) -> bytes:
    """`data` as `torch.save` writes it, in its older form.

    A1111 opens a zip only if it knows the name of every member, and torch has added some since.
    """
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=False)
    return file.getvalue()
