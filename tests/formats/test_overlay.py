"""What A1111 writes on pictures, by its own reckoning of where and how large."""

from math import cos

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from textinv_core.formats.overlay import shade, written_on

GREY = np.full((512, 512, 3), 200, np.uint8)
FOOTERS = ("v1-5-pruned", "[81761151]", "8v 1500s")


def a1111_overlay(pixels, title, left, mid, right):
    """The reference's steps, with pillow's font in place of its own."""
    image = Image.fromarray(pixels)
    width, height = image.size
    gradient = Image.new("RGBA", (1, height), color=(0, 0, 0, 0))
    for y in range(height):
        mag = 1 - cos(y / height * 1.5)
        mag = max(mag, 1 - cos((height - y) / height * 1.5 * 1.1))
        gradient.putpixel((0, y), (0, 0, 0, int(mag * 255)))
    image = Image.alpha_composite(image.convert("RGBA"), gradient.resize(image.size))
    draw = ImageDraw.Draw(image)
    font_of, white = ImageFont.load_default, (255, 255, 255, 230)
    size = min(int(32 * ((width * 0.75 - 40) / draw.textbbox((0, 0), title, font=font_of(32))[2])), 72)
    draw.text((10, 10), title, anchor="lt", font=font_of(size), fill=white)
    widths = [draw.textbbox((0, 0), text, font=font_of(size))[2] for text in (left, mid, right)]
    font = font_of(min(min(int(size * ((width / 3 - 10) / w)), 72) for w in widths))
    draw.text((10, height - 10), left, anchor="ls", font=font, fill=white)
    draw.text((width / 2, height - 10), mid, anchor="ms", font=font, fill=white)
    draw.text((width - 10, height - 10), right, anchor="rs", font=font, fill=white)
    return np.array(image)[..., :3]


@pytest.mark.parametrize(("height", "width"), [(512, 512), (256, 256), (768, 512), (320, 640)])
@pytest.mark.parametrize("title", ["<cat>", "<a-name-that-is-rather-long-for-a-picture>"])
def test_it_is_a1111s(height, width, title):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(written_on(pixels, title, FOOTERS), a1111_overlay(pixels, title, *FOOTERS))


def test_it_is_darkest_at_the_edges():
    rows = shade(512)
    assert rows[0] == 255 and rows[511] == int(255 * (1 - cos(1.5 * 511 / 512)))
    assert rows[200] > rows[240] and rows[280] < rows[300] and rows[230:290].max() < 100


@pytest.mark.parametrize("size", [(1, 9), (64, 64), (700, 40)])
@pytest.mark.parametrize("footers", [FOOTERS, ("", "", "1v"), ("", "", "")])
def test_any_size_and_text_will_do(size, footers):
    pixels = np.full((*size, 3), 200, np.uint8)
    assert written_on(pixels, "<" + "x" * 100 + ">", footers).shape == pixels.shape
    assert (pixels == 200).all()


def test_each_text_is_in_its_place():
    bare = written_on(GREY, "", ("", "", ""))
    places = {0: (400, 0), 1: (400, 171), 2: (400, 342)}
    for i, (y, x) in places.items():
        footers = tuple(text if n == i else "" for n, text in enumerate(FOOTERS))
        changed = np.argwhere((written_on(GREY, "", footers) != bare).any(2))
        assert len(changed) and changed.min(0)[0] > y and x <= changed.min(0)[1] and changed.max(0)[1] < x + 171
    changed = np.argwhere((written_on(GREY, "<cat>", ("", "", "")) != bare).any(2))
    assert changed.min(0)[0] == 10 and changed.min(0)[1] >= 10 and changed.max(0)[0] < 100
