"""Folders of pictures: which of them may be read, and what there is in them.

A folder is always named relative to a root, and nothing outside that root is read: a graph may come from
anyone, and what it reads ends up in pictures that are passed on. The root itself may be a link.
"""

import hashlib
import os
import re
from pathlib import Path, PurePath, PureWindowsPath

from ..errors import UserError
from ..picture_kinds import FURTHER_KINDS

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", *FURTHER_KINDS)


def _natural(path: Path) -> list[list[str | int]]:
    """A sort key that puts 2 before 10, ignores case, and keeps folders together.

    Digits stand at odd places of each part, so text is only ever compared with text.
    """
    return [
        [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", part.casefold()))]
        for part in path.with_suffix("").parts
    ]


def is_inside(path: str | Path, root: str | Path) -> bool:
    """Whether `path` leads to `root` or below it, with every link followed; False for what no file can be called."""
    try:
        # Unlike `Path.resolve`, this takes links that go in circles.
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except ValueError:  # NUL, or half a surrogate pair
        return False


def contained_folder(root: str | Path, folder: str) -> Path:
    """The folder that `folder` names below `root`; "" and "." name the root itself.

    What is there under exactly that name comes first: on some systems `"cats "`, `a\\b` and `d:cats` are folders like
    any other. Else spaces around it are dropped and backslashes count as slashes, so that a graph made on Windows
    works elsewhere. Raises UserError for absolute paths, drive letters, ways out of the root (`..` and links alike)
    and folders that do not exist.
    """
    exact = Path(root, folder)
    if not PurePath(folder).anchor and is_inside(exact, root) and os.path.isdir(exact):
        return exact
    relative = folder.strip().replace("\\", "/")
    path = Path(root, relative)
    if PureWindowsPath(relative).anchor or not is_inside(path, root):
        raise UserError(
            f"The folder {folder!r} is outside of {str(root)!r}, and nothing outside is read. "
            "Move or copy the pictures into a folder there and give its name, like 'my_pictures'."
        )
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise UserError(f"{folder!r} in {str(root)!r} is a file. Give the name of a folder.")
    there = ", ".join(list_subfolders(root, depth=1, limit=20)) or "no folders yet"
    raise UserError(f"There is no folder {folder!r} in {str(root)!r}. There is: {there}.")


def list_subfolders(root: str | Path, depth: int = 4, limit: int = 500) -> list[str]:
    """Paths of folders below `root`, with slashes, in natural order; hidden and linked ones are left out.

    `contained_folder` takes each of them. At most `limit` (>= 1) of them and `depth` (>= 1) levels, the upper levels
    first: the list must stay quick.
    """
    folders: list[Path] = []
    level = [Path(root)]
    for _ in range(depth):
        level = [child for parent in level for child in _subfolders(parent)][: limit - len(folders)]
        folders += level
    return [path.as_posix() for path in sorted((path.relative_to(root) for path in folders), key=_natural)]


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")]
    except OSError:  # not there, or not ours to look into: nothing to choose from
        return []
    return sorted((folder / name for name in names), key=_natural)


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The picture files in `folder`, in natural order of their path below it; hidden files are left out.

    With `recursive` also those of its folders, hidden and linked ones left out. Links to single files are
    listed; `load_folder` looks where they lead.
    """
    images = []
    for parent, folders, files in os.walk(folder):
        visible = [name for name in files if not name.startswith(".")]
        images += [Path(parent, name) for name in visible if name.lower().endswith(EXTENSIONS)]
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
    return sorted(images, key=lambda path: (_natural(path.relative_to(folder)), str(path)))


def folder_fingerprint(root: str | Path, folder: str, recursive: bool = False) -> str:
    """A hash that changes when a picture or caption file of the folder is added, changed or removed.

    It looks at names, sizes and times of change, not into the files. Raises what `contained_folder` raises.
    """
    base = contained_folder(root, folder)
    digest = hashlib.sha256()
    for image in list_images(base, recursive):
        for path in (image, image.with_suffix(".txt")):
            digest.update(f"{path.relative_to(base).as_posix()} {_stamp(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:  # no caption file, or a link to nothing
        return "missing"
    return f"{stat.st_mtime_ns} {stat.st_size}"
