"""A prompt as the windows of tokens that ComfyUI makes of it (SDTokenizer in its sd1_clip.py), embeddings included.

For hosts whose own tokenizers know neither windows nor `embedding:<name>` nor `(weights:1.2)`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..errors import UserError
from ..prompts import EMBEDDING, pieces, read_name

# A piece of text with fewer tokens than this goes into the next window as a whole; ComfyUI calls it a word.
LONG_PIECE = 8


class Token(NamedTuple):
    """What stands at one place of a window: a token's id, or a vector [dim] of an embedding; and how much it counts."""

    what: int | Tensor
    weight: float = 1.0


def tokens(
    prompt: str, tokenize: Callable[[str], list[int]], find: Callable[[str], Tensor | None]
) -> list[list[Token]]:
    """The tokens of `prompt`, piece by piece; vectors where it says `embedding:<name>`.

    tokenize: text -> ids, without start and end. find: name -> vectors [n, dim], or None for an embedding that is to
    be left out. Raises UserError for an `embedding:` without a name.
    """
    groups = []
    for piece, weight in pieces(prompt):
        text = piece
        if piece.startswith(EMBEDDING):
            text = piece[len(EMBEDDING) :]
            if not text.strip():
                raise UserError(
                    f"The prompt {prompt!r} has an {EMBEDDING!r} without a name. Write the embedding's name behind it, "
                    "or take it out."
                )
            name, text = read_name(text)
            vectors = find(name)
            if vectors is not None:
                groups.append([Token(vector, weight) for vector in vectors])
        if text:
            groups.append([Token(token, weight) for token in tokenize(text)])
    return groups


def windows(groups: list[list[Token]], size: int, start: int, end: int, pad: int) -> list[list[Token]]:
    """`groups`, see `tokens`, in windows of `size` tokens: each starts with `start`, then has `end`, then is padded.

    Long groups flow from one window into the next, short ones stay together. At least one window comes back.
    """
    filled: list[list[Token]] = [[Token(start)]]
    for group in groups:
        together = len(group) < LONG_PIECE and len(group) <= size - 2
        while group:
            room = size - 1 - len(filled[-1])
            if len(group) <= room or not together:
                filled[-1] += group[:room]
                group = group[room:]
            if group:
                filled.append([Token(start)])
    return [[*window, Token(end), *[Token(pad)] * (size - 1 - len(window))] for window in filled]
