"""What to generate in the course of a training, to see what has been learnt by then: when, and how.

Imports no torch, because flags are made of it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from typing_extensions import Doc

from ..errors import SettingError, check_choice

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
    negative: Annotated[str, Doc("What not to generate. [name] stands for the embedding there too.")] = ""
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


def is_alike(preview: Preview, other: Any) -> bool:
    """Whether a preview was told the same, but for when there is one. other: its `asdict`, as read from a file."""
    return isinstance(other, dict) and {**other, "every": preview.every} == asdict(preview)
