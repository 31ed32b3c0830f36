"""A template's lines, and the prompt that one of them and a caption make."""

import re

from ..errors import UserError
from .syntax import EMBEDDING

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


def template_lines(template: str, own: str = "") -> tuple[str, ...]:
    """The prompt lines of a template, one of which is drawn for each sample.

    template: a name in TEMPLATES, or `custom` for the lines of `own`, stripped, blank ones dropped.
    Raises UserError for an unknown template, `custom` without lines, or a line of `own` without `[name]`.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if template != "custom":
        raise UserError(f"There is no template {template!r}. Use one of {', '.join(TEMPLATES)} or custom.")
    lines = tuple(filter(None, map(str.strip, own.splitlines())))
    if not lines:
        raise UserError("The custom template has no lines. Write at least one, such as: a photo of [name]")
    for line in lines:
        if "[name]" not in line:
            raise UserError(
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
