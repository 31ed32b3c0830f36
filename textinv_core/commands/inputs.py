"""What commands work on: the model, the pictures, and the embedding to begin with."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hosts.precision import dtype_of
from ..image_settings import ImageSettings
from .plan import Plan

if TYPE_CHECKING:
    from ..embedding import Embedding
    from ..hosts.diffusers import PipelineHost
    from ..picture import Picture

_loaded: dict[tuple[Any, ...], Any] = {}  # what `load_model` was asked for last -> the host


def load_model(model: Path, config: Path | None, device: str, precision: str) -> "PipelineHost":
    """A model, loaded once for all jobs in a row that use it; another one's memory is given back before.

    Raises what `hosts.pipelines.load` does, and UserError for a device there is not.
    """
    asked = (model, config, device, precision)
    if asked not in _loaded:
        _loaded.clear()
        gc.collect()  # modules and their methods can refer to one another
        _loaded[asked] = _load_model(*asked)
    return _loaded[asked]


def _load_model(model: Path, config: Path | None, device: str, precision: str) -> "PipelineHost":
    import torch

    from ..devices import device_called
    from ..hosts.diffusers import load

    on = device_called(device)
    if precision == "auto":
        half = on.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if half else "fp32"
    return load(model, config, str(on), dtype_of(precision))


def starting_embedding(plan: Plan, host: "PipelineHost") -> "Embedding":
    """What is trained: a new embedding, or the one in the file that `plan.from_` names, under the plan's name if it has
    one."""
    from ..embedding import continued
    from ..formats import load_embedding

    if not plan.from_:
        return host.create_embedding(plan.name, plan.init_text, plan.vectors)
    return continued(load_embedding(plan.from_), plan.name)


def own_size(images: ImageSettings, model: Path, config: Path | None) -> ImageSettings:
    """`images` with the size the model was made for where they leave it to that; see `hosts.pipelines.own_size`."""
    if images.resize == "keep" or (images.width and images.height):
        return images
    from ..hosts.pipelines import own_size

    side = own_size(model, config)
    return replace(images, width=images.width or side, height=images.height or side)


def load_pictures(images: ImageSettings) -> "list[Picture]":
    """The pictures that are trained on, in a size that is no longer left to the model. Raises what
    `images.load_folder` does."""
    from ..images import load_folder, preprocess
    from ..picture import unmasked

    folder = images.folder.resolve()
    pictures = load_folder(
        folder.parent,
        folder.name,
        images.recursive,
        images.captions,
        images.filename_word_regex or None,
        images.filename_join_string,
    )
    resized = preprocess(pictures, images.width, images.height, images.resize, images.flip)
    return resized if images.mask_loss else [replace(each, mask=unmasked(each.pixels)) for each in resized]
