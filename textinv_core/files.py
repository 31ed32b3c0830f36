"""Files that are written whole or not at all, their names as text, and claims on them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, replacing what was there; whatever goes wrong, the old file stays as it was.

    The folder must exist. For text, pass its bytes: `text.encode()`. Raises OSError that names `path`.
    """
    path = Path(path)
    # In the same folder, because only within one file system is a rename a single step.
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what a process that was killed in `write_atomically` has left in `folder` and below; nobody may be writing
    there."""
    for path in folder.rglob(f".{'[0-9a-f]' * 32}.tmp"):
        path.unlink(missing_ok=True)


def numbered(path: Path, suffixes: tuple[str, ...] = ()) -> Path:
    """`path`, or where there is such a file already, `<stem>_2`, `<stem>_3`, ... with the same suffix.

    suffixes: further ones of which there must be no such file either.
    """
    n = 1
    free = path
    while any(free.with_suffix(suffix).exists() for suffix in {path.suffix, *suffixes}):
        n += 1
        free = path.with_stem(f"{path.stem}_{n}")
    return free


def readable_stem(path: str | os.PathLike[str]) -> str:
    """A file's name without its extension, as text that can be written anywhere: names may hold bytes that are none,
    and none but ASCII is text where Python takes that for the system's encoding."""
    return os.fsencode(Path(path).stem).decode("utf-8", "replace")


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether what `path` stands for is this process's alone for the length of the block. The claim ends with the
    process, however that ends.

    The file stays: one that came and went could be locked by two processes, each its own.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        try:
            # Checked inside, because each system has one of the two.
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            yield False
        else:
            yield True
    finally:
        os.close(file)
