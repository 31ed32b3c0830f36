"""`textinv apply`: pictures made with embeddings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from ..errors import SettingError, UserError
from ..hosts.precision import Precision
from ..image_settings import SIDES
from .embeddings import load_embeddings
from .output import USAGE, AsJson, Float, Report, Whole, failing
from .paths import check_file, check_model, check_output


def apply(
    prompts: Annotated[list[str], Parameter(help="What to draw, with embedding:NAME where it belongs.")],
    /,
    *,
    model: Annotated[Path, Parameter(help="A single file (.safetensors), or a folder in diffusers' layout.")],
    embedding: Annotated[
        list[Path] | None,
        Parameter(help="An embedding file, in prompts embedding:NAME after the file's name; can come several times."),
    ] = None,
    negative: Annotated[
        str, Parameter(help="What not to draw; it may name embeddings too.", allow_leading_hyphen=True)
    ] = "",
    width: Annotated[
        Whole, Parameter(help="Pixels; 0 takes the size the model was made for.", validator=Number(gte=0))
    ] = 0,
    height: Annotated[Whole, Parameter(help="Pixels, as width.", validator=Number(gte=0))] = 0,
    steps: Annotated[
        Whole,
        Parameter(
            help="Sampling steps: more take longer and look cleaner, up to a point.", validator=Number(gte=1, lte=1000)
        ),
    ] = 20,
    guidance: Annotated[
        Float,
        Parameter(
            help="How closely to keep to the prompt: 1 not at all, above 10 colours burn.",
            validator=Number(gte=1, lte=1000),
        ),
    ] = 7.0,
    seed: Annotated[
        Whole, Parameter(help="The first picture's; the next ones count on from it.", validator=Number(gte=0, lt=2**63))
    ] = 0,
    count: Annotated[
        Whole, Parameter(help="Pictures for each prompt, all at once.", validator=Number(gte=1, lte=1024))
    ] = 1,
    out: Annotated[Path, Parameter(help="The folder for the pictures.")] = Path(),
    model_config: Annotated[
        Path | None, Parameter(help="For a single file of unusual shape: its configurations.")
    ] = None,
    device: Annotated[str, Parameter(help="cpu, cuda, mps, ...; auto takes the fastest there is.")] = "auto",
    precision: Annotated[Precision, Parameter(help="auto is bf16 on a CUDA GPU, else fp32.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Draw pictures with embeddings.

    For example:

        textinv apply "embedding:tom" --model sd15 --embedding output/tom.safetensors

        textinv apply "a cat" --negative embedding:bad --model sd15 --embedding bad.pt

    where sd15 is the folder of a model; it may also be a single file.

    Prompts mean what they mean in ComfyUI, (weights:1.2) included. The same seed gives the same picture.

    Ends with 0 when done, 1 when it failed, 2 for what was typed that it cannot use.
    """
    report = Report(as_json)
    with failing(report, USAGE):
        check_model(model, model_config)
        for file in embedding or []:
            check_file("embedding", file)
        check_output("out", out)
        _check_size(width, height)
        embeddings = load_embeddings(embedding or [])
        _check_named([*prompts, negative], [each.name for each in embeddings])
    with failing(report):
        from ..files import numbered
        from ..hosts.base import Sampling
        from ..images import save_picture
        from .inputs import load_model

        # Not on stdout, which has the paths alone.
        Console(stderr=True).print(f"Loading {model}", markup=False, highlight=False, soft_wrap=True)
        host = load_model(model, model_config, device, precision)
        shape = host.latent_shape(width, height)
        seeds, sampling = range(seed, seed + count), Sampling(steps, guidance, negative)
        for number, prompt in enumerate(prompts, 1):
            with _drawing(report, f"Drawing {number} of {len(prompts)}", prompt, steps) as show:
                pictures = host.sample([prompt] * count, seeds, shape, sampling, embeddings, show)
            for each, picture in zip(seeds, pictures, strict=True):
                path = numbered(out / f"{number:02}-{each}.png")
                save_picture(picture, path)
                report.facts(event="saved", path=str(path), prompt=prompt, seed=each)
                report.say(str(path))


@contextmanager
def _drawing(report: Report, title: str, prompt: str, steps: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, and JSON, for a function that is given the number of each step of the sampler as it is done."""
    from .progress import progress

    with progress() as bar:
        task = bar.add_task(title, total=steps, state="")

        def show(step: int) -> None:
            bar.update(task, completed=step)
            report.facts(event="step", prompt=prompt, step=step, last_step=steps)

        yield show


def _check_size(width: int, height: int) -> None:
    """Raise UserError for what no model can draw; 0 is its own size."""
    least, most = SIDES
    if any(side and (side % 8 or not least <= side <= most) for side in (width, height)):
        raise SettingError(
            lambda name: (
                f"Pictures of {width}x{height} pixels cannot be drawn: {name('width')} and {name('height')} are "
                f"multiples of 8 from {least} to {most}, or 0 for the size the model was made for."
            )
        )


def _check_named(prompts: list[str], names: list[str]) -> None:
    """Raise UserError unless all embeddings that prompts name are there."""
    from ..prompts import embeddings_named

    for prompt in prompts:
        if missing := [name for name in embeddings_named(prompt) if name not in names]:
            known = ", ".join(names) if names else "none"
            raise UserError(
                f"The prompt {prompt!r} names the embedding {missing[0]!r}, which is not there; given: {known}. "
                f"Add it as --embedding FILE, or correct the name."
            )
