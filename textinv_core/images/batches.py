"""Pictures as ComfyUI passes them between nodes: lists of batches, with captions, masks and names in lists beside."""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

from ..errors import UserError
from ..picture import Picture, unmasked
from .resize import resize

T = TypeVar("T")


def as_pictures(
    images: Sequence[Tensor],
    captions: Sequence[str] | None = None,
    masks: Sequence[Tensor] | None = None,
) -> list[Picture]:
    """One picture after another out of lists and batches.

    images: [H, W, C] or batches [B, H, W, C] in 0..1, of any sizes.
    captions: one for each picture or one for all; none gives "".
    masks: [H, W] or [B, H, W] in 0..1, one for each picture or one for all, of any size (a mask is stretched
        over its picture); none gives ones, which learns everything.
    Names are their numbers, from "1": ComfyUI passes none on.

    Raises UserError where captions or masks are neither as many as the pictures nor one.
    """
    singles = split_batches(images)
    captions = _one_each("captions", [""] if captions is None else captions, len(singles))
    if masks is None:
        planes = [unmasked(pixels) for pixels in singles]
    else:
        masks = [mask for batch in masks for mask in batch.reshape(-1, *batch.shape[-2:])]
        planes = [
            resize(mask.to(pixels.device), pixels.shape[1], pixels.shape[0], "squash")
            for pixels, mask in zip(singles, _one_each("masks", masks, len(singles)), strict=True)
        ]
    return [
        Picture(pixels, mask, caption, str(number))
        for number, (pixels, mask, caption) in enumerate(zip(singles, planes, captions, strict=True), 1)
    ]


def as_lists(pictures: Sequence[Picture]) -> tuple[list[Tensor], list[str], list[Tensor], list[str]]:
    """Images [1, H, W, 3], captions, masks [1, H, W] and names: lists of one length, in one order."""
    images, masks = [picture.pixels[None] for picture in pictures], [picture.mask[None] for picture in pictures]
    return images, [picture.caption for picture in pictures], masks, [picture.name for picture in pictures]


def split_batches(images: Sequence[Tensor]) -> list[Tensor]:
    """Pictures float32 [H, W, 3], one by one, out of pictures and batches: [H, W, C] or [B, H, W, C].

    Channels after the third (alpha) are dropped, a single one is repeated.
    """
    singles = [image.float() for batch in images for image in batch.reshape(-1, *batch.shape[-3:])]
    return [image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3] for image in singles]


def _one_each(what: str, values: Sequence[T], count: int) -> Sequence[T]:
    """`values` if there are `count`, or the only one `count` times."""
    if len(values) == count:
        return values
    if len(values) == 1:
        return list(values) * count
    raise UserError(
        f"There are {len(values)} {what} for {count} pictures. "
        f"Connect as many {what} as there are pictures, one for all, or none."
    )
