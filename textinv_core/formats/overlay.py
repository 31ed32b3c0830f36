"""What A1111 writes on a picture that holds an embedding: its name above; model, hash, vectors and steps below.

Sizes and places are A1111's; the font is pillow's own, as A1111's (Roboto) does not come along.
"""

from math import cos

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PADDING = 10
LARGEST = 72


def _size(draw: ImageDraw.ImageDraw, text: str, size: int, room: float) -> int:
    """The size at which `text` is `room` pixels wide, measured at `size`."""
    _, _, width, _ = draw.textbbox((0, 0), text, font=ImageFont.load_default(size))
    return max(1, min(int(size * (room / max(1, width))), LARGEST))


def shade(height: int) -> np.ndarray:
    """How black each row gets, uint8 [height]: most at the upper edge, then at the lower one."""
    rows = range(height)
    black = [max(1 - cos(1.5 * y / height), 1 - cos(1.65 * (height - y) / height)) for y in rows]
    return np.array([min(int(255 * share), 255) for share in black], np.uint8)


def written_on(pixels: np.ndarray, title: str, footers: tuple[str, str, str]) -> np.ndarray:
    """A picture, uint8 [H, W, 3], with A1111's text on it.

    footers: what stands below at the left, in the middle and at the right; empty is nothing.
    """
    height, width = pixels.shape[:2]
    black = np.zeros((height, width, 4), np.uint8)
    black[..., 3] = shade(height)[:, None]
    image = Image.alpha_composite(Image.fromarray(pixels).convert("RGBA"), Image.fromarray(black)).convert("RGB")
    draw = ImageDraw.Draw(image)
    size = _size(draw, title, 32, 0.75 * width - 4 * PADDING)
    draw.text((PADDING, PADDING), title, "white", ImageFont.load_default(size), "lt")
    smaller = min((_size(draw, text, size, width / 3 - PADDING) for text in footers if text), default=size)
    places = zip(footers, (PADDING, width / 2, width - PADDING), ("ls", "ms", "rs"), strict=True)
    for text, x, anchor in places:
        draw.text((x, height - PADDING), text, "white", ImageFont.load_default(smaller), anchor)
    return np.array(image)
