"""`textinv apply`: pictures made with embeddings."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from .output import USAGE, Report, failing


def apply(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="What to draw, with embedding:NAME where it belongs.")
    ],
    model: Annotated[Path, typer.Option(help="A single file (.safetensors), or a folder in diffusers' layout.")],
    embedding: Annotated[
        list[Path] | None,
        typer.Option(
            help="An embedding file, in prompts embedding:NAME after the file's name; can come several times."
        ),
    ] = None,
    negative: Annotated[str, typer.Option(help="What not to draw; it may name embeddings too.")] = "",
    width: Annotated[
        int, typer.Option(help="Pixels; 0 takes the size the model was made for.", min=0, show_default=False)
    ] = 0,
    height: Annotated[int, typer.Option(help="Pixels, as width.", min=0, show_default=False)] = 0,
    steps: Annotated[
        int, typer.Option(help="Sampling steps: more take longer and look cleaner, up to a point.", min=1)
    ] = 20,
    guidance: Annotated[
        float, typer.Option(help="How closely to keep to the prompt: 1 not at all, above 10 colours burn.", min=1)
    ] = 7.0,
    seed: Annotated[int, typer.Option(help="The first picture's; the next ones count on from it.", min=0)] = 0,
    count: Annotated[int, typer.Option(help="Pictures for each prompt, all at once.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = Path(),
    model_config: Annotated[
        Path | None, typer.Option(help="For a single file of unusual shape: its configurations.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...; auto takes the fastest there is.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16; auto is bf16 on a CUDA GPU, else fp32.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Say on stdout what happens, one JSON object a line.")
    ] = False,
) -> None:
    """Draw pictures with embeddings.

    Examples:

        textinv apply "a photo of embedding:my-cat in the snow" --model sd15.safetensors \\
            --embedding my-cat.safetensors --count 4

        textinv apply "a tower, embedding:my-ink" --negative "embedding:bad" \\
            --model sd15.safetensors --embedding my-ink.safetensors --embedding bad.pt

    Prompts mean what they mean in ComfyUI, (weights:1.2) included. The same seed gives the same picture.
    """
    report = Report(as_json)
    with failing(report):
        from ..formats import load_embedding

        embeddings = [load_embedding(file) for file in embedding or []]
    with failing(report, USAGE):
        _check_named([*prompts, negative], [each.name for each in embeddings])
    with failing(report):
        from ..files import numbered
        from ..hosts import diffusers as host
        from ..images import save_picture
        from .train import load_model

        pipe = load_model(model, model_config, device, precision)
        side = pipe.unet.config.sample_size * host.latent_multiple(pipe)
        seeds = range(seed, seed + count)
        for number, prompt in enumerate(prompts, 1):
            pictures = host.generate(
                pipe,
                prompt,
                embeddings,
                negative=negative,
                width=width or side,
                height=height or side,
                steps=steps,
                guidance=guidance,
                seeds=seeds,
            )
            for each, picture in zip(seeds, pictures, strict=True):
                path = numbered(out / f"{number:02}-{each}.png")
                save_picture(picture, path)
                report.facts(event="saved", path=str(path), prompt=prompt, seed=each)
                report.say(str(path))


def _check_named(prompts: list[str], names: list[str]) -> None:
    """Raise ValueError unless all embeddings that prompts name are there, once."""
    from ..prompts import EMBEDDING, pieces, read_name

    again = [name for name, times in Counter(names).items() if times > 1]
    if again:
        raise ValueError(f"Two of the embeddings are called {again[0]!r}, after their files. Rename one of them.")
    for prompt in prompts:
        named = [read_name(piece[len(EMBEDDING) :])[0] for piece, _ in pieces(prompt) if piece.startswith(EMBEDDING)]
        if missing := [name for name in named if name not in names]:
            known = ", ".join(names) if names else "none"
            raise ValueError(
                f"The prompt {prompt!r} names the embedding {missing[0]!r}, which is not there; given: {known}. "
                f"Add it as --embedding FILE, or correct the name."
            )
