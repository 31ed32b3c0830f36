"""Pictures read from files: pixels and masks of every kind of file, and with each the words that go with it."""

import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..devices import is_out_of_memory
from ..errors import SettingError, UserError
from ..image_settings import CAPTIONS
from ..picture import Picture, unmasked
from ..picture_kinds import FURTHER_KINDS
from ..prompts import filename_words, sidecar_caption
from .folders import EXTENSIONS, contained_folder, is_inside, list_images

log = logging.getLogger("textinv")

# Only these of pillow's readers are tried: others start programs (EPS) or do not belong to the files that are listed.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", *FURTHER_KINDS.values())
MAX_PIXELS = 100_000_000
# What counts as white in grey pictures of 16 bits and more: the first of these that is not exceeded.
WHITES = {"I": (65535, 2**31 - 1), "F": (1, 255, 65535)}
# Pictures of a folder that are read while others are at work: of one, 12 million pixels are 36 MB.
AHEAD = 2


def load_image(path: str | Path) -> tuple[Tensor, Tensor]:
    """A picture and its mask: float32 [H, W, 3] and [H, W], both in 0..1, as the EXIF orientation turns them.

    The mask is the picture's alpha, 1 = opaque = to be learnt, and `unmasked` where there is no transparency.
    Colours below transparent places stay as stored. Of several frames the first is taken.

    Raises UserError with the reason (not the name, which the caller knows) for files that pillow cannot read
    to their end and for more than 100 million pixels; those are refused before any is decoded.
    """
    return _to_tensors(_read(path))


def _read(path: str | Path) -> np.ndarray:
    """A picture's values as its file has them, turned: [H, W, 3 or 4] in bytes, or grey [H, W] in wider numbers.

    Raises as `load_image`.
    """
    if not Path(path).is_file():
        raise UserError("there is no such file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{image.width} x {image.height} are more than {MAX_PIXELS // 10**6} million pixels")
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode[0] in WHITES:  # pillow would clip these to 255 instead of scaling them
                return np.array(image)
            mode = "RGBA" if image.has_transparency_data else "RGB"
            return np.array(image if image.mode == mode else image.convert(mode))
    except UnidentifiedImageError as error:
        raise UserError("it is not a picture, or of a kind other than its extension says") from error
    except Exception as error:  # pillow's readers raise anything from struct.error to SyntaxError on broken files
        if is_out_of_memory(error):  # which is not the file's fault
            raise
        raise UserError(str(error) or type(error).__name__) from error


def _to_tensors(values: np.ndarray) -> tuple[Tensor, Tensor]:
    """What `_read` gives as float32 [H, W, 3] and its alpha [H, W]."""
    if values.ndim == 2:
        grey = torch.from_numpy(values.astype(np.float32)).nan_to_num(0.0, 0.0, 0.0)
        peak = float(grey.max())
        whites = WHITES["F" if values.dtype.kind == "f" else "I"]
        grey = (grey / next((white for white in whites if peak <= white), peak)).clamp(0, 1)
        return grey[..., None].repeat(1, 1, 3), unmasked(grey)
    # In bytes as long as can be: as numbers a photograph takes hundreds of megabytes, and a copy as many again.
    coloured = torch.from_numpy(values)
    pixels = coloured[..., :3].float().div_(255)
    return pixels, coloured[..., 3].float().div_(255) if coloured.shape[-1] == 4 else unmasked(pixels)


def _reading(paths: Sequence[Path], root: str | Path) -> Generator[Future[np.ndarray]]:
    """Each path's `_read` in their order, with the next ones already begun; UserError in it for what links out of
    `root`. To be closed where it is not used up."""

    def read(path: Path) -> np.ndarray:
        _check_inside(path, root)
        return _read(path)

    ahead: deque[Future[np.ndarray]] = deque()
    pool = ThreadPoolExecutor(AHEAD)  # pillow reads without holding up Python
    try:
        for path in paths:
            ahead.append(pool.submit(read, path))
            if len(ahead) > AHEAD:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def load_folder(
    root: str | Path,
    folder: str,
    recursive: bool = False,
    captions: str = "auto",
    word_regex: str | None = None,
    join: str = " ",
) -> Iterator[Picture]:
    """Read the pictures of `folder` below `root`, with their masks, words and names, in natural order of their names:
    one after another as they are asked for, as each takes hundreds of megabytes, and a few ahead. Their alpha is the
    mask, see `load_image`.

    captions: `sidecar` takes the text of the `.txt` beside the picture, `filename` the words of its name (see
    `prompts.filename_words` for `word_regex` and `join`), `auto` the first of these there is, `none` nothing.

    What cannot be read, and what links out of the root, is left out and named in one warning behind the last. Raises
    UserError where that leaves no picture, and what `contained_folder` and the caption functions raise; nothing before
    the first is asked for.
    """
    if captions not in CAPTIONS:
        raise UserError(f"There are no captions {captions!r}; there are {', '.join(CAPTIONS)}.")
    base = contained_folder(root, folder)
    count, skipped = 0, []
    paths = list_images(base, recursive)
    with closing(_reading(paths, root)) as reading:
        for path in paths:
            name = path.relative_to(base)
            try:
                planes = _to_tensors(next(reading).result())
            except UserError as error:
                skipped.append((name.as_posix(), str(error)))
                continue
            caption = None
            if captions in ("auto", "sidecar"):
                try:
                    _check_inside(path.with_suffix(".txt"), root)
                    caption = sidecar_caption(path)
                except ValueError as error:
                    skipped.append((name.with_suffix(".txt").as_posix(), str(error)))
            if caption is None and captions in ("auto", "filename"):
                caption = filename_words(path, word_regex, join)
            count += 1
            yield Picture(*planes, caption or "", name.with_suffix("").as_posix())
            del planes  # before the next ones are at hand
    _report(count, skipped, base, folder, recursive)


def _check_inside(path: Path, root: str | Path):
    if not is_inside(path, root):
        raise UserError(f"it links to a place outside of {str(root)!r}")


def _report(count: int, skipped: list[tuple[str, str]], base: Path, folder: str, recursive: bool):
    """Warn of what was left out; raise UserError where nothing is left."""
    left_out = "".join(f"\n  {name}: {reason}" for name, reason in skipped)
    if count:
        if left_out:
            log.warning("Left out of the pictures in %r:%s", folder, left_out)
        return
    if left_out:
        raise UserError(f"None of the pictures in the folder {folder!r} can be read:{left_out}")
    deeper = 0 if recursive else len(list_images(base, recursive=True))
    kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
    nothing = f"The folder {folder!r} has no pictures ({kinds})."
    if deeper:
        raise SettingError(lambda name: f"{nothing} The folders in it have {deeper}: switch {name('recursive')} on.")
    raise UserError(f"{nothing} Put the pictures to learn there.")
