"""What is written about an image: the text beside it, or the words of its file's name."""

import os
import re
from pathlib import Path

from ..errors import UserError
from ..files import readable_stem

MAX_CAPTION_BYTES = 64 * 1024


def sidecar_caption(path: str | os.PathLike[str]) -> str | None:
    """The text of the `.txt` beside the image `path`, as it stands there; None where there is no such file.

    Raises UserError naming the file if it has more than 64 KiB or is not UTF-8 (a byte order mark is dropped).
    """
    sidecar = Path(path).with_suffix(".txt")
    if not sidecar.is_file():
        return None
    with open(sidecar, "rb") as file:
        data = file.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        raise UserError(f"The caption file {sidecar.name!r} is larger than 64 KiB. Shorten it or remove it.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"The caption file {sidecar.name!r} is not UTF-8 text. Save it as UTF-8.") from None


def filename_words(path: str | os.PathLike[str], word_regex: str | None = None, join: str = " ") -> str:
    """The words of an image's file name: its stem without leading digits and dashes.

    word_regex: where given, the words are what it finds, joined by `join`: of the whole match, or of its one group.
    Raises UserError for a regex that cannot be read or has more than one group.
    """
    stem = re.sub(r"^[-\d]+\s*", "", readable_stem(path))
    if not word_regex:
        return stem
    try:
        pattern = re.compile(word_regex)
    except (re.error, OverflowError, RecursionError) as error:  # the latter for a{99999999999} and (((...
        raise UserError(f"The filename word regex {word_regex!r} cannot be read: {error}.") from None
    if pattern.groups > 1:
        raise UserError(
            f"The filename word regex {word_regex!r} has {pattern.groups} groups; it may have one at most. "
            "Write (?:...) for the others."
        )
    return join.join(pattern.findall(stem))


def filewords(path: str | os.PathLike[str], word_regex: str | None = None, join: str = " ") -> str:
    """What `[filewords]` stands for: the image's sidecar caption if there is one, else the words of its name.

    Raises UserError as `sidecar_caption` and `filename_words` do.
    """
    caption = sidecar_caption(path)
    return filename_words(path, word_regex, join) if caption is None else caption
