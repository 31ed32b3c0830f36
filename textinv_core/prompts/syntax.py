"""How ComfyUI reads a prompt: its weights, and the embeddings it names."""

import re
from collections.abc import Iterator

EMBEDDING = "embedding:"


def is_number(text: str) -> bool:
    """Whether prompt syntax would take `text` as a weight: in `(embedding:7)` the 7 is one."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _groups(text: str) -> Iterator[str]:
    """`text` cut before and after each outermost pair of parentheses, which stay on."""
    group, depth = "", 0
    for char in text:
        if char == "(" and depth == 0:
            yield group
            group = ""
        depth += (char == "(") - (char == ")")
        group += char
        if char == ")" and depth == 0:
            yield group
            group = ""
    yield group


def _segments(text: str, weight: float = 1.0) -> Iterator[tuple[str, float]]:
    """The stretches of `text` that share one weight, and it, without parentheses: token_weights in ComfyUI."""
    for group in _groups(text):
        if len(group) > 1 and group[0] == "(" and group[-1] == ")":
            inner = group[1:-1]
            weighted, _, number = inner.rpartition(":")
            if weighted and is_number(number):
                yield from _segments(weighted, float(number))
            else:
                yield from _segments(inner, weight * 1.1)
        else:
            yield group, weight


def pieces(prompt: str) -> Iterator[tuple[str, float]]:
    """What ComfyUI's tokenizers take one after another, and its weight: text, or `embedding:` and what follows.

    A piece ends with a stretch of one weight, and before an `embedding:` that comes after whitespace.
    """
    escaped = prompt.replace("\\)", "\0\1").replace("\\(", "\0\2")
    for segment, weight in _segments(escaped):
        text = segment.replace("\0\1", ")").replace("\0\2", "(")
        for piece in re.split(rf"(?<=\s)(?={EMBEDDING})", text):
            if piece:
                yield piece, weight


def read_name(text: str) -> tuple[str, str]:
    """The name that `text`, which follows `embedding:`, starts with, and the text left over; "" for no name.

    ComfyUI takes all up to whitespace, `<` or `[` for the name, less the commas around it.
    """
    words = text.split()
    if not words:
        return "", ""
    word, leftover = words[0], " ".join(words[1:])
    if bracket := re.search(r"[<\[]", word):
        leftover = " ".join([word[bracket.start() :], *words[1:]])
        word = word[: bracket.start()]
    name = word.strip(",")
    return name, leftover if word == name else f"{word[len(name) :]} {leftover}"


def embeddings_named(prompt: str) -> list[str]:
    """The names that ComfyUI, reading `prompt` with its weights, takes for embeddings', see `pieces`, `read_name`; ""
    for a bare `embedding:`, or one with commas alone."""
    return [read_name(piece[len(EMBEDDING) :])[0] for piece, _ in pieces(prompt) if piece.startswith(EMBEDDING)]


def names_embedding(prompt: str, name: str) -> bool:
    """Whether ComfyUI, reading `prompt` with its weights, finds `embedding:<name>` in it; see `pieces`, `read_name`.

    A bare `embedding:` fails the whole prompt there, so it is False.
    """
    named = [piece[len(EMBEDDING) :] for piece, _ in pieces(prompt) if piece.startswith(EMBEDDING)]
    return all(text.strip() for text in named) and any(read_name(text)[0] == name for text in named)
