"""Pictures and their masks brought to one size: cropped, squashed or kept, and mirrored if asked."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import UserError
from ..image_settings import RESIZE_MODES
from ..picture import Picture


def resize(image: Tensor, width: int, height: int, mode: str) -> Tensor:
    """A picture [H, W, C] or mask [H, W] in 0..1 as float32 of exactly `height` x `width` pixels (>= 1).

    `crop` keeps proportions and cuts equally from both ends of what sticks out, `squash` takes the picture in
    its entirety and changes proportions, `keep` returns it as it is. Raises UserError for another mode.
    """
    if mode not in RESIZE_MODES:
        raise UserError(f"There is no way to resize called {mode!r}; there are {', '.join(RESIZE_MODES)}.")
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


def preprocess(
    pictures: Iterable[Picture], width: int, height: int, mode: str = "crop", flip_copies: bool = False
) -> list[Picture]:
    """Pictures of one size for training, with captions and names as they are.

    pictures: taken one after another, and none is held for longer than that takes.
    width, height, mode: see `resize`; a mask is cut where its picture is.
    flip_copies: follow each picture by its mirror image, the mask mirrored too, under the same caption and name.
    """

    def made_of(picture: Picture) -> list[Picture]:
        pixels, mask = (resize(plane, width, height, mode) for plane in (picture.pixels, picture.mask))
        resized = replace(picture, pixels=pixels, mask=mask)
        return [resized, replace(picture, pixels=flip(pixels), mask=flip(mask))] if flip_copies else [resized]

    return [*chain.from_iterable(map(made_of, pictures))]  # a loop's variable would hold a picture while the next comes
