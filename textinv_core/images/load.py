"""Folders of pictures: which files, in which order, what is in them, and which words go with them.

A folder is always named relative to a root, and nothing outside that root is read: a graph may come from
anyone, and what it reads ends up in pictures that are passed on. The root itself may be a link.
"""

import hashlib
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..prompts import filename_words, sidecar_caption

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Only these of pillow's readers are tried: others start programs (EPS) or do not belong to the extensions above.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
CAPTIONS = ("auto", "sidecar", "filename", "none")
MAX_PIXELS = 100_000_000
# What counts as white in grey pictures of 16 bits and more: the first of these that is not exceeded.
WHITES = {"I": (65535, 2**31 - 1), "F": (1, 255, 65535)}


@dataclass(frozen=True)
class LoadedFolder:
    """The readable pictures of a folder; the four lists are of one length and in one order.

    images: float32 [H, W, 3] in 0..1.
    masks: float32 [H, W] in 0..1, 1 where there is something to learn; see `load_image`.
    captions: the words of each picture, "" where it has none.
    names: path below the folder without extension, `cat` or `sub/cat`.
    skipped: (path below the folder, reason) of each file that was left out.
    """

    images: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def _natural(path: Path) -> list[list[str | int]]:
    """A sort key that puts 2 before 10, ignores case, and keeps folders together.

    Digits stand at odd places of each part, so text is only ever compared with text.
    """
    return [
        [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", part.casefold()))]
        for part in path.with_suffix("").parts
    ]


def _real(path: str | Path) -> Path:
    """`path` with every link followed; unlike `Path.resolve` it takes links that go in circles."""
    return Path(os.path.realpath(path))


def _is_inside(path: Path, root: str | Path) -> bool:
    return _real(path).is_relative_to(_real(root))


def contained_folder(root: str | Path, folder: str) -> Path:
    """The folder that `folder` names below `root`; "" and "." name the root itself.

    Backslashes count as slashes, so that a graph made on Windows works elsewhere. Raises ValueError for
    absolute paths, drive letters, ways out of the root (`..` and links alike) and folders that do not exist.
    """
    relative = folder.strip().replace("\\", "/")
    path = Path(root) / relative
    if PureWindowsPath(relative).anchor or "\0" in relative or not _is_inside(path, root):
        raise ValueError(
            f"The folder {folder!r} is outside of {str(root)!r}, and nothing outside is read. "
            "Move or copy the pictures into a folder there and give its name, like 'my_pictures'."
        )
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{folder!r} in {str(root)!r} is a file. Give the name of a folder.")
    there = ", ".join(list_subfolders(root, depth=1, limit=20)) or "no folders yet"
    raise ValueError(f"There is no folder {folder!r} in {str(root)!r}. There is: {there}.")


def list_subfolders(root: str | Path, depth: int = 4, limit: int = 500) -> list[str]:
    """Paths of folders below `root`, with slashes, in natural order; hidden and linked ones are left out.

    At most `limit` (>= 1) of them and `depth` (>= 1) levels, the upper levels first: the list must stay quick.
    """
    found: list[Path] = []
    level = [Path(root)]
    for _ in range(depth):
        level = [child for parent in level for child in _subfolders(parent)][: limit - len(found)]
        found += level
    return [path.as_posix() for path in sorted((path.relative_to(root) for path in found), key=_natural)]


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
    found = []
    for parent, folders, files in os.walk(folder):
        visible = [name for name in files if not name.startswith(".")]
        found += [Path(parent, name) for name in visible if name.lower().endswith(EXTENSIONS)]
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
    return sorted(found, key=lambda path: (_natural(path.relative_to(folder)), str(path)))


def load_image(path: str | Path) -> tuple[Tensor, Tensor]:
    """A picture and its mask: float32 [H, W, 3] and [H, W], both in 0..1, as the EXIF orientation turns them.

    The mask is the picture's alpha, 1 = opaque = to be learnt, and all ones where there is no transparency.
    Colours below transparent places stay as stored. Of several frames the first is taken.

    Raises ValueError with the reason (not the name, which the caller knows) for files that pillow cannot read
    to their end and for more than 100 million pixels; those are refused before any is decoded.
    """
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} are more than {MAX_PIXELS // 10**6} million pixels")
            return _to_tensors(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise ValueError("it is not a picture, or of a kind other than its extension says") from error
    except Exception as error:  # pillow's readers raise anything from struct.error to SyntaxError on broken files
        raise ValueError(str(error) or type(error).__name__) from error


def _to_tensors(image: Image.Image) -> tuple[Tensor, Tensor]:
    """A picture of any mode as float32 [H, W, 3] and its alpha [H, W]."""
    if image.mode[0] in WHITES:
        # Pillow would clip these to 255 instead of scaling them.
        grey = torch.from_numpy(np.array(image).astype(np.float32)).nan_to_num(0.0, 0.0, 0.0)
        peak = float(grey.max())
        white = next((white for white in WHITES[image.mode[0]] if peak <= white), peak)
        grey = (grey / white).clamp(0, 1)
        return grey[..., None].repeat(1, 1, 3), torch.ones_like(grey)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    pixels = torch.from_numpy(np.array(image.convert(mode))).float() / 255
    mask = pixels[..., 3].clone() if mode == "RGBA" else torch.ones(pixels.shape[:2])
    return pixels[..., :3].contiguous(), mask


def load_folder(
    root: str | Path,
    folder: str,
    recursive: bool = False,
    captions: str = "auto",
    word_regex: str | None = None,
    join: str = " ",
) -> LoadedFolder:
    """Read the pictures of `folder` below `root`, with their masks, words and names.

    captions: `sidecar` takes the text of the `.txt` beside the picture, `filename` the words of its name (see
    `prompts.filename_words` for `word_regex` and `join`), `auto` the first of these there is, `none` nothing.

    What cannot be read, and what links out of the root, is left out and named in one warning. Raises ValueError
    where that leaves no picture, and what `contained_folder` and the caption functions raise.
    """
    if captions not in CAPTIONS:
        raise ValueError(f"There are no captions {captions!r}; there are {', '.join(CAPTIONS)}.")
    base = contained_folder(root, folder)
    loaded = LoadedFolder()
    for path in list_images(base, recursive):
        name = path.relative_to(base)
        try:
            _check_inside(path, root)
            image, mask = load_image(path)
        except ValueError as error:
            loaded.skipped.append((name.as_posix(), str(error)))
            continue
        caption = None
        if captions in ("auto", "sidecar"):
            try:
                _check_inside(path.with_suffix(".txt"), root)
                caption = sidecar_caption(path)
            except ValueError as error:
                loaded.skipped.append((name.with_suffix(".txt").as_posix(), str(error)))
        if caption is None and captions in ("auto", "filename"):
            caption = filename_words(path, word_regex, join)
        loaded.images.append(image)
        loaded.masks.append(mask)
        loaded.captions.append(caption or "")
        loaded.names.append(name.with_suffix("").as_posix())
    _report(loaded, base, folder, recursive)
    return loaded


def _check_inside(path: Path, root: str | Path):
    if not _is_inside(path, root):
        raise ValueError(f"it links to a place outside of {str(root)!r}")


def _report(loaded: LoadedFolder, base: Path, folder: str, recursive: bool):
    """Warn of what was left out; raise ValueError where nothing is left."""
    left_out = "".join(f"\n  {name}: {reason}" for name, reason in loaded.skipped)
    if loaded.images:
        if left_out:
            logging.warning("Left out of the pictures in %r:%s", folder, left_out)
        return
    if left_out:
        raise ValueError(f"None of the pictures in the folder {folder!r} can be read:{left_out}")
    deeper = 0 if recursive else len(list_images(base, recursive=True))
    hint = f"The folders in it have {deeper}: switch `recursive` on." if deeper else "Put the pictures to learn there."
    kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
    raise ValueError(f"The folder {folder!r} has no pictures ({kinds}). {hint}")


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
