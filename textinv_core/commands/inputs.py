"""What commands work on: the model, the pictures, and the embedding to begin with."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
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

    from ..hosts.diffusers import load

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if precision == "auto":
        half = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        precision = "bf16" if half else "fp32"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"There is no device {device!r} here: {str(error).splitlines()[0]}") from None
    return load(model, config, device, dtype_of(precision))


def starting_embedding(plan: Plan, host: "PipelineHost") -> "Embedding":
    """What is trained: a new embedding, or the one in the file that `plan.from_` names, under the plan's name if it has
    one."""
    from ..embedding import continued
    from ..formats import load_embedding

    if not plan.from_:
        return host.create_embedding(plan.name, plan.init_text, plan.vectors)
    return continued(load_embedding(plan.from_), plan.name)


def load_pictures(images: ImageSettings) -> "list[Picture]":
    """The pictures that are trained on. Raises what `images.load_folder` does."""
    import torch

    from ..images import load_folder, preprocess

    folder = images.folder.resolve()
    pictures = load_folder(
        folder.parent,
        folder.name,
        images.recursive,
        images.captions,
        images.filename_word_regex or None,
        images.filename_join_string,
    ).pictures
    if not images.mask_loss:
        pictures = [replace(picture, mask=torch.ones_like(picture.mask)) for picture in pictures]
    return preprocess(pictures, images.width, images.height, images.resize, images.flip)
