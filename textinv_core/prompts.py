"""What an image is trained under: its words, a template's lines, and the prompt the two make."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

MAX_CAPTION_BYTES = 64 * 1024
EMBEDDING = "embedding:"

_SUBJECT = (
    "a picture showing [name]",
    "a snapshot of [name]",
    "a portrait of [name]",
    "a close view of [name]",
    "a distant view of [name]",
    "an image with [name] in it",
    "a candid shot of [name]",
    "a detailed image of [name]",
    "a plain image of [name]",
    "a colourful picture of [name]",
    "a sharp picture of [name]",
    "a soft, slightly blurred picture of [name]",
    "a brightly lit picture of [name]",
    "a dimly lit picture of [name]",
    "a wide shot with [name]",
    "a tightly framed shot of [name]",
    "an off-centre picture of [name]",
    "one view of [name]",
    "another look at [name]",
    "[name] in the middle of the picture",
    "[name] seen from where I stood",
    "[name], and little else",
    "this is [name]",
    "look, [name]",
)

_STYLE = (
    "an artwork by [name]",
    "a picture made by [name]",
    "a drawing in the manner of [name]",
    "a sketch the way [name] would draw it",
    "an illustration with the look of [name]",
    "a canvas painted like [name]",
    "a scene as [name] would show it",
    "a composition typical of [name]",
    "a small work in [name] style",
    "a large work in [name] style",
    "an early piece by [name]",
    "a late piece by [name]",
    "a bold piece in [name] style",
    "a quiet piece in [name] style",
    "a detail from a work by [name]",
    "a study after [name]",
    "a print with the colours of [name]",
    "a picture with the lines of [name]",
    "something [name] might have made",
    "an image with the mood of [name]",
    "a page from a book illustrated by [name]",
    "[name] style, full picture",
    "[name] style, finely worked",
    "[name] style, loosely worked",
)

# Template -> its lines. `none` is the caption alone, which has to name the embedding itself.
TEMPLATES = {
    "subject": _SUBJECT,
    "style": _STYLE,
    "subject_filewords": tuple(f"{line}, [filewords]" for line in _SUBJECT),
    "style_filewords": tuple(f"[filewords], {line}" for line in _STYLE),
    "none": ("[filewords]",),
}


def is_number(text: str) -> bool:
    """Whether prompt syntax would take `text` as a weight: in `(embedding:7)` the 7 is one."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def sidecar_caption(path: str | os.PathLike[str]) -> str | None:
    """The text of the `.txt` beside the image `path`, as it stands there; None where there is no such file.

    Raises ValueError naming the file if it has more than 64 KiB or is not UTF-8 (a byte order mark is dropped).
    """
    sidecar = Path(path).with_suffix(".txt")
    if not sidecar.is_file():
        return None
    with open(sidecar, "rb") as file:
        data = file.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        raise ValueError(f"The caption file {sidecar.name!r} is larger than 64 KiB. Shorten it or remove it.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"The caption file {sidecar.name!r} is not UTF-8 text. Save it as UTF-8.") from None


def filename_words(path: str | os.PathLike[str], word_regex: str | None = None, join: str = " ") -> str:
    """The words of an image's file name: its stem without leading digits and dashes.

    word_regex: where given, the words are what it finds, joined by `join`: of the whole match, or of its one group.
    Raises ValueError for a regex that cannot be read or has more than one group.
    """
    stem = re.sub(r"^[-\d]+\s*", "", Path(path).stem)
    if not word_regex:
        return stem
    try:
        pattern = re.compile(word_regex)
    except (re.error, OverflowError, RecursionError) as error:  # the latter for a{99999999999} and (((...
        raise ValueError(f"The filename word regex {word_regex!r} cannot be read: {error}.") from None
    if pattern.groups > 1:
        raise ValueError(
            f"The filename word regex {word_regex!r} has {pattern.groups} groups; it may have one at most. "
            "Write (?:...) for the others."
        )
    return join.join(pattern.findall(stem))


def filewords(path: str | os.PathLike[str], word_regex: str | None = None, join: str = " ") -> str:
    """What `[filewords]` stands for: the image's sidecar caption if there is one, else the words of its name.

    Raises ValueError as `sidecar_caption` and `filename_words` do.
    """
    caption = sidecar_caption(path)
    return filename_words(path, word_regex, join) if caption is None else caption


def template_lines(template: str, own: str = "") -> tuple[str, ...]:
    """The prompt lines of a template, one of which is drawn for each sample.

    template: a name in TEMPLATES, or `custom` for the lines of `own`, stripped, blank ones dropped.
    Raises ValueError for an unknown template, `custom` without lines, or a line of `own` without `[name]`.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if template != "custom":
        raise ValueError(f"There is no template {template!r}. Use one of {', '.join(TEMPLATES)} or custom.")
    lines = tuple(filter(None, map(str.strip, own.splitlines())))
    if not lines:
        raise ValueError("The custom template has no lines. Write at least one, such as: a photo of [name]")
    for line in lines:
        if "[name]" not in line:
            raise ValueError(
                f"The template line {line!r} does not say [name], so nothing would be learnt from it. Add [name], "
                "or choose the template none if your captions name the embedding themselves."
            )
    return lines


def render(line: str, name: str, caption: str) -> str:
    """The prompt a template line makes: `[filewords]` is the caption, then `[name]`, there too, is the embedding.

    `embedding:<name>` gets a space on either side unless there is one, or the end of the prompt, or a comma
    followed by one of these: only then do all of ComfyUI's tokenizers find it, also those that read no weights,
    whatever stands around it. `([name]:1.2)` becomes `( embedding:<name> :1.2)`, which weighs the same.
    """
    # Who knows the host's syntax may write embedding:[name]; doubled, it would fail the prompt there.
    text = line.replace("[filewords]", caption).replace(EMBEDDING + "[name]", "[name]")
    spaced = re.sub(r"(?<=\S)(?=\[name\])|(?<=\[name\])(?!,?(?:\s|\Z))", " ", text)
    return spaced.replace("[name]", EMBEDDING + name)


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


def names_embedding(prompt: str, name: str) -> bool:
    """Whether ComfyUI, reading `prompt` with its weights, finds `embedding:<name>` in it; see `pieces`, `read_name`.

    A bare `embedding:` fails the whole prompt there, so it is False.
    """
    named = [piece[len(EMBEDDING) :] for piece, _ in pieces(prompt) if piece.startswith(EMBEDDING)]
    return all(text.strip() for text in named) and any(read_name(text)[0] == name for text in named)
