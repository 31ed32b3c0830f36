"""What is learnt from: pictures as latents with their captions, in batches of equal size."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..errors import UserError
from ..hosts.base import Host
from ..picture import Picture
from .latents import latents

log = logging.getLogger("textinv")


@dataclass(frozen=True)
class Example:
    """One picture.

    latent: float32 [C, ..., h, w], scaled as the model takes it.
    caption: its filewords; may be empty.
    weights: float32 [h, w] with a mean of 1, how much each place counts in the loss; None for everywhere alike.
    name: its picture's; may be empty.
    size: width and height of the picture in pixels, for messages.
    """

    latent: Tensor
    caption: str = ""
    weights: Tensor | None = None
    name: str = ""
    size: tuple[int, int] = (0, 0)


def loss_weights(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask [H, W] as weights float32 [height, width]: the least is 0 and the mean 1, as in A1111's alpha weights.

    A mask that is the same everywhere weights nothing: all ones.
    """
    mask = torch.nn.functional.interpolate(mask[None, None].float(), (height, width), mode="area")[0, 0]
    mask = mask - mask.min()
    # A spread within rounding is none: normalising it would weight noise.
    return mask / mask.mean() if mask.max() > 1e-6 else torch.ones_like(mask)


def crop_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """The middle of a picture or mask [H, W, ...] whose sides are multiples of `multiple`, as large as can be.

    Raises UserError for a picture smaller than that.
    """
    height, width = (side // multiple * multiple for side in image.shape[:2])
    if not height or not width:
        raise UserError(
            f"A picture of {image.shape[1]}x{image.shape[0]} pixels is too small to train on: this model needs "
            f"at least {multiple} pixels a side."
        )
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def cropped(picture: Picture, multiple: int) -> Picture:
    """A picture and its mask as `crop_to_multiple` leaves them."""
    pixels, mask = (crop_to_multiple(each, multiple) for each in (picture.pixels, picture.mask))
    return replace(picture, pixels=pixels, mask=mask)


def encoded_examples(host: Host, pictures: Sequence[Picture]) -> list[Example]:
    """As `encoding`, all of them."""
    return [*encoding(host, pictures)]


def encoding(host: Host, pictures: Sequence[Picture]) -> Iterator[Example]:
    """Pictures as what is trained on, one after another as they are encoded: latents, and weights from masks.

    Their middle is taken, with sides that are multiples of the host's `latent_multiple`. Raises UserError for pictures
    smaller than that, before any is encoded.
    """
    multiple = host.latent_multiple
    as_trained = [cropped(picture, multiple) for picture in pictures]
    if cut := [each for each in pictures if any(side % multiple for side in each.pixels.shape[:2])]:
        height, width = cut[0].pixels.shape[:2]
        log.info(
            f"textinv: {len(cut)} of {len(pictures)} pictures, such as one of {width}x{height} pixels, are cut at the "
            f"edges: this model takes sides that are multiples of {multiple}."
        )
    encoded = latents(host, [picture.pixels for picture in as_trained])
    for picture, latent in zip(as_trained, encoded, strict=True):
        height, width = picture.pixels.shape[:2]
        with torch.inference_mode(False):  # so that autograd may use them
            weights = loss_weights(picture.mask, *latent.shape[-2:])
        yield Example(latent, picture.caption, weights, picture.name, (width, height))


def buckets(examples: Sequence[Example]) -> list[list[int]]:
    """Indices into `examples`, grouped by the shape of their latents, in order of first appearance."""
    groups: dict[torch.Size, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.latent.shape, []).append(index)
    return list(groups.values())


def epoch(examples: Sequence[Example], batch_size: int, generator: Generator) -> list[list[int]]:
    """One pass over all examples: batches of up to `batch_size` indices, each from a single bucket, shuffled.

    Every example comes exactly once; where a bucket does not divide evenly, its last batch is smaller.
    """
    batches = []
    for bucket in buckets(examples):
        shuffled = [bucket[i] for i in torch.randperm(len(bucket), generator=generator).tolist()]
        batches += [shuffled[i : i + batch_size] for i in range(0, len(shuffled), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def batches_per_epoch(examples: Sequence[Example], batch_size: int) -> int:
    return sum(-(-len(bucket) // batch_size) for bucket in buckets(examples))
