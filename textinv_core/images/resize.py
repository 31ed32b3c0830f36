"""Pictures and their masks brought to one size: cropped, squashed or kept, and mirrored if asked."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

RESIZE_MODES = ("crop", "squash", "keep")

T = TypeVar("T")


def resize(image: Tensor, width: int, height: int, mode: str) -> Tensor:
    """A picture [H, W, C] or mask [H, W] in 0..1 as float32 of exactly `height` x `width` pixels (>= 1).

    `crop` keeps proportions and cuts equally from both ends of what sticks out, `squash` takes the picture in
    its entirety and changes proportions, `keep` returns it as it is. Raises ValueError for another mode.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"There is no way to resize called {mode!r}; there are {', '.join(RESIZE_MODES)}.")
    if mode == "keep":
        return image
    if mode == "crop":
        image = _centre(image, width, height)
    if image.shape[:2] == (height, width):
        return image.float()
    planes = image.float().reshape(*image.shape[:2], -1).movedim(-1, 0)
    scaled = interpolate(planes[None], size=(height, width), mode="bicubic", antialias=True)[0]
    # Bicubic overshoots at sharp edges. Its own range also keeps a plain mask plain, to the bit.
    scaled = scaled.clamp(planes.min(), planes.max())
    return scaled.movedim(0, -1).reshape(height, width, *image.shape[2:]).contiguous()


def _centre(image: Tensor, width: int, height: int) -> Tensor:
    """The largest part in the middle of [H, W, ...] with the proportions `width` : `height`.

    Cut before scaling, so that a very long picture is not blown up only to be cut away.
    """
    h, w = image.shape[:2]
    crop_h = min(h, max(1, round(w * height / width)))
    crop_w = min(w, max(1, round(h * width / height)))
    top, left = (h - crop_h) // 2, (w - crop_w) // 2
    return image[top : top + crop_h, left : left + crop_w]


def flip(image: Tensor) -> Tensor:
    """The mirror image, left for right, of a picture [H, W, C] or mask [H, W]."""
    return image.flip(1)


def split_batches(images: Sequence[Tensor]) -> list[Tensor]:
    """Pictures [H, W, 3], one by one, out of pictures and batches: [H, W, C] or [B, H, W, C].

    Channels after the third (alpha) are dropped, a single one is repeated.
    """
    singles = [image for batch in images for image in batch.reshape(-1, *batch.shape[-3:])]
    return [image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3] for image in singles]


def preprocess(
    images: Sequence[Tensor],
    captions: Sequence[str] | None,
    masks: Sequence[Tensor] | None,
    width: int,
    height: int,
    mode: str = "crop",
    flip_copies: bool = False,
) -> tuple[list[Tensor], list[str], list[Tensor]]:
    """Pictures, captions and masks for training; the three lists are of one length and in one order.

    images: [H, W, C] or batches [B, H, W, C] in 0..1, of any sizes.
    captions: one for each picture or one for all; none gives "".
    masks: [H, W] or [B, H, W] in 0..1, one for each picture or one for all, of any size (a mask is stretched
        over its picture); none gives ones, which learns everything.
    width, height, mode: see `resize`; a mask is cut where its picture is.
    flip_copies: follow each picture by its mirror image, with the same caption and the mask mirrored.

    Raises ValueError where captions or masks are neither as many as the pictures nor one.
    """
    images = split_batches(images)
    captions = _one_each("captions", [""] if captions is None else captions, len(images))
    masks = [torch.ones(1, 1)] if masks is None else masks
    masks = [mask for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
    masks = _one_each("masks", masks, len(images))

    done: list[tuple[Tensor, str, Tensor]] = []
    for image, caption, mask in zip(images, captions, masks, strict=True):
        mask = resize(mask.to(image.device), image.shape[1], image.shape[0], "squash")
        image, mask = resize(image, width, height, mode), resize(mask, width, height, mode)
        done.append((image, caption, mask))
        if flip_copies:
            done.append((flip(image), caption, flip(mask)))
    return [i for i, _, _ in done], [c for _, c, _ in done], [m for _, _, m in done]


def _one_each(what: str, values: Sequence[T], count: int) -> Sequence[T]:
    """`values` if there are `count`, or the only one `count` times."""
    if len(values) == count:
        return values
    if len(values) == 1:
        return list(values) * count
    raise ValueError(
        f"There are {len(values)} {what} for {count} pictures. "
        f"Connect as many {what} as there are pictures, one for all, or none."
    )
