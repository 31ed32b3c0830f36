"""The pictures that are learnt from."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """One picture, with what belongs to it.

    pixels: float32 [H, W, 3] in 0..1.
    mask: float32 [H, W] in 0..1, 1 = white = to be learnt; all ones where nothing is masked.
    caption: its words; may be empty.
    name: its path below the folder it was read from, without extension: `cat` or `sub/cat`. Where that is unknown its
        number, from "1".
    """

    pixels: Tensor
    mask: Tensor
    caption: str
    name: str


def unmasked(pixels: Tensor) -> Tensor:
    """The mask of a picture [H, W, ...] in which nothing is masked: all ones, each the same place in memory, so not to
    be written into."""
    return torch.ones((), device=pixels.device).expand(pixels.shape[:2])
