"""Pictures generated in the course of a training, to see what has been learnt by then: when, and how.

Imports no torch, because flags are made of it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typing_extensions import Doc

from ..errors import SettingError, UserError, check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from ..embedding import Embedding
    from ..hosts.base import Host
    from .folder import RunFolder

log = logging.getLogger("textinv")

# The least and the most of each number. Sides are 0, or as `image_settings.SIDES`.
RANGES = {
    "every": (0, 1_000_000),
    "steps": (0, 1000),
    "cfg": (0, 100),
    "seed": (0, 2**64 - 1),
    "width": (0, 8192),
    "height": (0, 8192),
}


@dataclass(frozen=True)
class Preview:
    """When to generate a picture of what is being trained, and how.

    Its settings are called `preview_...` in messages. Raises UserError, naming the setting, the value and what it can
    be, for one out of range; what depends on the model is `check`'s to say.
    """

    every: Annotated[
        int, Doc("Generate a picture every so many steps, and at the end; 0 for only the one at the end.")
    ] = 0
    prompt: Annotated[
        str, Doc("What to generate. [name] stands for the embedding. Empty takes the first training prompt.")
    ] = ""
    negative: Annotated[str, Doc("What not to generate; it may name embeddings too.")] = ""
    sampler: Annotated[
        str, Doc("What takes the noise away, by its name in ComfyUI: dpmpp_2m or euler. Empty takes dpmpp_2m.")
    ] = ""
    scheduler: Annotated[
        str, Doc("How the steps are spread over the noise: normal or karras. Empty takes the model's own.")
    ] = ""
    steps: Annotated[int, Doc("Sampling steps; 0 for no previews.")] = 20
    cfg: Annotated[float, Doc("How closely to keep to the prompt: 1 not at all, above 10 colours burn.")] = 7.0
    # One for all trainings: pictures of different steps, and of runs with different seeds, then compare.
    seed: Annotated[int, Doc("The noise that each preview starts from, so that they can be compared.")] = 0
    width: Annotated[int, Doc("Pixels; 0 takes that of the first training picture.")] = 0
    height: Annotated[int, Doc("Pixels, as width.")] = 0

    def __post_init__(self):
        for setting, (least, most) in RANGES.items():
            value = getattr(self, setting)
            if not least <= value <= most:
                raise SettingError(
                    lambda name, setting=setting, value=value, least=least, most=most: (
                        f"{name(f'preview_{setting}')} cannot be {value!r}; it can be {least} to {most}."
                    )
                )


def check_preview(preview: Preview, samplers: Sequence[str], schedulers: Sequence[str], multiple: int) -> None:
    """Raise UserError for what a host cannot generate that has these samplers and schedulers, and latents with cells of
    `multiple` pixels a side."""
    for setting, names in (("sampler", samplers), ("scheduler", schedulers)):
        check_choice(f"preview_{setting}", getattr(preview, setting) or names[0], names)
    if preview.width % multiple or preview.height % multiple:
        raise SettingError(
            lambda name: (
                f"Previews of {preview.width}x{preview.height} pixels cannot be generated: {name('preview_width')} and "
                f"{name('preview_height')} have to be multiples of {multiple}, or 0 for the size of the first training "
                "picture."
            )
        )


@dataclass(frozen=True)
class Previewed:
    """Pictures generated with what was learnt by a step, float32 [n, H, W, 3] in 0..1: one, or the frames of a video.

    path: where the first is kept; None where it could not be written.
    """

    step: int
    pictures: "Tensor"
    path: Path | None


def generate(
    preview: Preview,
    host: "Host",
    prompt: str,
    shape: Sequence[int],
    folder: "RunFolder",
    texts: Mapping[str, str] | None,
    embedding: "Embedding",
) -> Previewed | None:
    """A preview, kept in the run's folder; None, and a line in the log, where that fails. Raises what interrupts.

    prompt: that names `embedding`. shape: of the first training picture's latent, [C, ..., h, w]. texts: go into the
    file; None for how it was generated, as A1111 writes that.
    """
    from ..hosts.base import Sampling

    sides = zip((preview.height, preview.width), shape[-2:], strict=True)
    cells = [side // host.latent_multiple or own for side, own in sides]
    sampling = Sampling(preview.steps, preview.cfg, preview.negative, preview.sampler, preview.scheduler)
    try:
        pictures = host.sample([prompt], [preview.seed], [*shape[:-2], *cells], sampling, [embedding])
    except Exception:  # whatever it is, hours of training do not depend on it
        log.exception(f"textinv: the preview of step {embedding.step} failed; what was learnt is kept.")
        return None
    path = None
    try:
        texts = {"parameters": _parameters(preview, host, prompt, pictures[0])} if texts is None else texts
        path = folder.save_preview(pictures[0], embedding, texts)
        folder.save_image_embedding(pictures[0], embedding)
    except (OSError, UserError) as error:
        log.warning(f"textinv: not all of the preview could be kept in the run's folder: {error}")
    return Previewed(embedding.step or 0, pictures, path)


def _parameters(preview: Preview, host: "Host", prompt: str, picture: "Tensor") -> str:
    height, width = picture.shape[:2]
    negative = f"Negative prompt: {preview.negative}\n" if preview.negative else ""
    return (
        f"{prompt}\n{negative}Steps: {preview.steps}, Sampler: {preview.sampler or host.samplers[0]}, "
        f"CFG scale: {preview.cfg:g}, Seed: {preview.seed}, Size: {width}x{height}"
    )


def is_alike(preview: Preview, other: Any) -> bool:
    """Whether a preview was told the same, but for when there is one. other: its `asdict`, as read from a file."""
    return isinstance(other, dict) and {**other, "every": preview.every} == asdict(preview)


def all_of(folder: "RunFolder", steps: range, made: Mapping[int, "Tensor"]) -> "list[Tensor]":
    """The previews of a run after any of `steps`, in their order, each [n, H, W, 3], and all as large as the last.

    made: by step; others are read from the folder, where they were put before the run was gone on with.
    """
    from ..images import load_image

    found = dict(made)
    for step, path in folder.previews().items():
        if step in steps and step not in made:
            try:
                found[step] = load_image(path)[0][None]
            except UserError as error:
                log.warning(f"textinv: the preview {path} cannot be read, and is left out: {error}.")
    in_order = [found[step] for step in sorted(found)]
    alike = [pictures for pictures in in_order if pictures.shape[1:] == in_order[-1].shape[1:]]
    if len(alike) < len(in_order):
        log.info(
            f"textinv: of the run's {len(in_order)} previews {len(in_order) - len(alike)} come in another size than "
            f"the last one, and are only in {folder.path / 'images'}."
        )
    return alike
