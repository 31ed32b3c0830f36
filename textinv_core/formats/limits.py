"""How much of a file is read."""

import math
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import UserError

MAX_FILE_BYTES = 64 * 1024 * 1024  # of an embedding
MAX_TENSOR_BYTES = 64 * 1024 * 1024  # of all its vectors, as float32: 4096 of T5's
# Of a .safetensors, tensors apart: for thousands of tensors half a MiB, and a LoRA's facts about its pictures.
MAX_HEADER_BYTES = 8 * 1024 * 1024


def check_file(path: Path, max_bytes: int | None) -> None:
    """Raise UserError, before it is opened, for what is no ordinary file, or has more than `max_bytes`."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise UserError(f"{path.name!r} was not opened: it is {what}, not a file.")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UserError(
            f"{path.name!r} was not opened: it has {status.st_size / 2**20:.0f} MiB, and {max_bytes / 2**20:.0f} are "
            "the most that is read. Is it the right file?"
        )


def check_total(shapes: Iterable[Sequence[int]], max_bytes: int, file: str) -> None:
    """Raise UserError where tensors of these shapes would take more than `max_bytes` as float32.

    A file says little of it: one of a few bytes may show the same number again and again.
    """
    total = 4 * sum(math.prod(shape) for shape in shapes)
    if total > max_bytes:
        raise UserError(
            f"{file!r} was not read: its tensors would take {total / 2**20:.0f} MiB, and {max_bytes / 2**20:.0f} are "
            "the most that is read. Is it the right file?"
        )
