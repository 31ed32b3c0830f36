"""How much of a file is read."""

from pathlib import Path

from ..errors import UserError

MAX_FILE_BYTES = 256 * 1024 * 1024  # of an embedding


def check_size(path: Path, max_bytes: int) -> None:
    """Raise UserError for a file of more than `max_bytes`, before it is read."""
    if (size := path.stat().st_size) > max_bytes:
        raise UserError(
            f"{path.name!r} was not opened: it has {size / 2**20:.0f} MiB, and {max_bytes / 2**20:.0f} are the most "
            "that is read. Is it the right file?"
        )


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """What is in a file of at most `max_bytes`; UserError for a larger one."""
    check_size(path, max_bytes)
    with open(path, "rb") as file:
        return file.read(max_bytes)  # bounded, because a device has no size
