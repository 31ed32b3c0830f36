"""Cropping, squashing and mirroring pictures with their masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textinv_core.errors import UserError
from textinv_core.images import flip, preprocess, resize
from textinv_core.picture import Picture


def ramp(height: int, width: int) -> torch.Tensor:
    """[H, W, 3]: red grows to the right, green downwards, both from 0 to 1."""
    x = torch.linspace(0, 1, width).expand(height, width)
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return torch.stack([x, y, torch.full((height, width), 0.5)], dim=-1)


sides = st.integers(1, 70)


@settings(deadline=None, max_examples=60)
@given(h=sides, w=sides, height=sides, width=sides, mode=st.sampled_from(["crop", "squash"]))
def test_size_is_exact_and_values_stay_in_range(h, w, height, width, mode):
    image = torch.rand(h, w, 3, generator=torch.Generator().manual_seed(0))
    out = resize(image, width, height, mode)
    assert out.shape == (height, width, 3)
    assert out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1
    assert resize(image[..., 0], width, height, mode).shape == (height, width)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (48, 96)])
@pytest.mark.parametrize(("h", "w"), [(40, 100), (100, 40), (300, 7), (97, 89)])
def test_crop_keeps_proportions_and_the_middle(h, w, width, height):
    out = resize(ramp(h, w), width, height, "crop")
    scale = max(width / w, height / h)
    for axis, channel, length, target in ((1, 0, w, width), (0, 1, h, height)):
        values = out[..., channel].mean(dim=1 - axis)
        assert abs(values.mean() - 0.5) < 0.6 / length + 0.01, "the middle stays in the middle"
        seen = (target / scale - 1) / (length - 1)
        assert abs((values[-1] - values[0]) - seen) < 1.5 / length + 0.02, "as much is seen as fits"


def test_very_long_pictures():
    assert resize(ramp(1, 5000), 64, 32, "crop").shape == (32, 64, 3)


def test_squash_takes_everything():
    out = resize(ramp(40, 200), 64, 64, "squash")
    assert out[:, 0, 0].max() < 0.03 and out[:, -1, 0].min() > 0.97
    assert out[0, :, 1].max() < 0.03 and out[-1, :, 1].min() > 0.97


def test_width_and_height_are_not_swapped():
    assert resize(ramp(50, 50), 32, 16, "squash").shape == (16, 32, 3)
    assert resize(ramp(50, 50), 32, 16, "crop").shape == (16, 32, 3)


def test_keep_and_matching_sizes_change_no_bit():
    image = ramp(21, 34)
    assert torch.equal(resize(image, 8, 8, "keep"), image)
    assert torch.equal(resize(image, 34, 21, "crop"), image)
    assert torch.equal(resize(image, 34, 21, "squash"), image)


def test_unknown_mode():
    with pytest.raises(UserError, match=r"'stretch'.*crop, squash, keep"):
        resize(ramp(4, 4), 8, 8, "stretch")


def test_shrinking_is_antialiased():
    noise = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    assert resize(noise, 16, 16, "squash").std() < noise.std() / 10


def test_plain_masks_stay_plain_to_the_bit():
    mask = torch.full((333, 517), 0.3)
    assert resize(mask, 512, 512, "crop").unique().tolist() == mask.unique().tolist()


def test_flip_mirrors_left_and_right_only():
    image = ramp(3, 5)
    assert torch.equal(flip(image)[:, 0], image[:, -1])
    assert torch.equal(flip(image)[0, :, 1], image[0, :, 1])
    mask = torch.tensor([[1.0, 0], [1, 0]])
    assert torch.equal(flip(mask), torch.tensor([[0.0, 1], [0, 1]]))


# preprocess


def picture(pixels: torch.Tensor, mask: torch.Tensor | None = None, caption: str = "", name: str = "1") -> Picture:
    return Picture(pixels, torch.ones(pixels.shape[:2]) if mask is None else mask, caption, name)


def test_each_picture_keeps_what_belongs_to_it():
    pictures = [
        picture(torch.full((h, w, 3), value), torch.full((h, w), value), f"words {value}", f"name {value}")
        for h, w, value in [(10, 12, 0.1), (10, 12, 0.2), (30, 20, 0.3)]
    ]
    resized = preprocess(pictures, 16, 24)
    for value, each in zip([0.1, 0.2, 0.3], resized, strict=True):
        assert torch.allclose(each.pixels, torch.full((24, 16, 3), value))
        assert torch.allclose(each.mask, torch.full((24, 16), value))
        assert (each.caption, each.name) == (f"words {value}", f"name {value}")


def test_flipped_copies_follow_their_pictures():
    left = torch.zeros(8, 8, 3)
    left[:, :4] = 1
    mask = left[..., 0] * 0.5
    pictures = preprocess(
        [picture(left, mask, "left", "a"), picture(torch.full((8, 8, 3), 0.2), mask, "plain", "b")],
        8,
        8,
        flip_copies=True,
    )
    assert [(each.caption, each.name) for each in pictures] == [("left", "a")] * 2 + [("plain", "b")] * 2
    first, second, *_ = pictures
    assert first.pixels[:, :4].min() == 1 and first.pixels[:, 4:].max() == 0
    assert second.pixels[:, :4].max() == 0 and second.pixels[:, 4:].min() == 1
    assert first.mask[0, 0] == 0.5 and first.mask[0, -1] == 0
    assert second.mask[0, 0] == 0 and second.mask[0, -1] == 0.5


def test_a_mask_is_cut_where_its_picture_is():
    pixels = ramp(40, 100)
    [cut] = preprocess([picture(pixels, pixels[..., 0])], 32, 32, "crop")
    assert (cut.pixels[..., 0] - cut.mask).abs().max() < 0.02


def test_kept_pictures_change_no_bit():
    pixels = ramp(20, 30)
    [kept] = preprocess([picture(pixels, pixels[..., 1])], 64, 64, "keep")
    assert torch.equal(kept.pixels, pixels) and torch.equal(kept.mask, pixels[..., 1])
