"""`textinv convert`: an embedding from one kind of file to another."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..errors import UserError
from .output import USAGE, AsJson, Report, failing
from .paths import check_file

if TYPE_CHECKING:
    from torch import Tensor

    from ..embedding import Embedding


def convert(
    file: Annotated[
        Path, Parameter(help="The embedding to read: .safetensors, .pt, .bin, a picture, or a LoRA with one.")
    ],
    out: Annotated[Path, Parameter(help="The file to write; its ending says of which kind.")],
    /,
    *,
    name: Annotated[
        str | None, Parameter(help="Of several embeddings that a LoRA brings along, the one to write.")
    ] = None,
    picture: Annotated[
        Path | None,
        Parameter(
            help="For .png: the picture to keep the embedding in, with its name and steps written on it; best with 64 "
            "or more pixels a side."
        ),
    ] = None,
    overwrite: Annotated[
        bool, Parameter(negative=(), show_default=False, help="Replace a file that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write an embedding as another kind of file: .safetensors for ComfyUI, diffusers and most others; .pt and .png as
    AUTOMATIC1111 has them; .bin for older diffusers.

    For example:

        textinv convert old.pt my-cat.safetensors

        textinv convert my-cat.safetensors my-cat.png --picture cat.jpg

        textinv convert lora.safetensors my-cat.safetensors --name "<my-cat>"

    The new embedding is called after its file, as prompts will find it.

    Ends with 0 when done, 1 when it failed, 2 for what was typed that it cannot use.
    """
    report = Report(as_json)
    with failing(report, USAGE):
        check_file("FILE", file)
        if picture:
            check_file("picture", picture)
        _check_target(out, overwrite)
        if out.suffix.lower() == ".png" and not picture:
            raise UserError("A .png keeps the embedding in a picture: give one with --picture, or write .safetensors.")
    with failing(report):
        from ..formats import PICTURES, keeps_facts, load_embedding, save_embedding

        embedding = replace(load_embedding(file, name), name=out.stem)
        save_embedding(embedding, out, _pixels(picture) if picture else None)
        lost = [] if keeps_facts(embedding, out) else _facts(embedding)
        report.facts(
            event="saved", path=str(out), name=embedding.name, step=embedding.step, **({"lost": lost} if lost else {})
        )
        report.say(f"{file} -> {out} ({embedding.shapes})")
        if lost:
            report.warn(f"This kind of file has no place for {', '.join(lost)}; keep {file} for them.")
        if picture and not out.name.lower().endswith(PICTURES):
            report.warn(f"The picture {picture} was not used: {out.suffix} files hold none.")


def _check_target(out: Path, overwrite: bool) -> None:
    """Raise UserError for what no embedding can be written to."""
    if out.is_dir():
        raise UserError(f"OUT is {str(out)!r}, and that is a folder. Give the file to write into it.")
    if not out.parent.is_dir():
        raise UserError(f"There is no folder {str(out.parent)!r} to write {out.name!r} into. Make it first.")
    from ..embedding import check_name
    from ..formats import check_suffix  # not before, because it takes a second

    check_suffix(out)
    check_name(out.stem)
    if out.exists() and not overwrite:
        raise UserError(f"There is a file {out} already. Give another name, or --overwrite to replace it.")


def _pixels(picture: Path) -> "Tensor":
    from ..images import load_image

    try:
        return load_image(picture)[0]
    except UserError as error:
        raise UserError(f"The picture {str(picture)!r} cannot be used: {error}.") from error


def _facts(embedding: "Embedding") -> list[str]:
    """What is known of an embedding besides its vectors: `step`, and the names of other facts."""
    return ["step"] * (embedding.step is not None) + sorted(embedding.metadata)
