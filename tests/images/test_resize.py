"""Cropping, squashing and mirroring pictures with their masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textinv_core.images import flip, preprocess, resize, split_batches


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
    with pytest.raises(ValueError, match=r"'stretch'.*crop, squash, keep"):
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


def test_batches_are_split_and_channels_made_three():
    four = torch.rand(2, 3, 4, 4)
    grey = torch.rand(3, 4, 1)
    singles = split_batches([four, grey, torch.rand(5, 6, 3)])
    assert [tuple(s.shape) for s in singles] == [(3, 4, 3), (3, 4, 3), (3, 4, 3), (5, 6, 3)]
    assert torch.equal(singles[1], four[1, ..., :3])
    assert torch.equal(singles[2][..., 2], grey[..., 0])


# preprocess


def plain(value: float, height: int = 10, width: int = 12) -> torch.Tensor:
    return torch.full((1, height, width, 3), value)


def test_each_picture_keeps_its_caption_and_mask():
    values = [0.1, 0.2, 0.3]
    images, captions, masks = preprocess(
        [torch.cat([plain(0.1), plain(0.2)]), plain(0.3, 30, 20)],
        ["one", "two", "three"],
        [torch.stack([torch.full((10, 12), v) for v in values[:2]]), torch.full((30, 20), 0.3)],
        16,
        24,
    )
    assert captions == ["one", "two", "three"]
    assert [tuple(image.shape) for image in images] == [(24, 16, 3)] * 3
    assert [tuple(mask.shape) for mask in masks] == [(24, 16)] * 3
    assert [round(float(image.mean()), 4) for image in images] == values
    assert [round(float(mask.mean()), 4) for mask in masks] == values


def test_flipped_copies_follow_their_pictures():
    left = torch.zeros(1, 8, 8, 3)
    left[:, :, :4] = 1
    mask = left[..., 0] * 0.5
    images, captions, masks = preprocess([left, plain(0.2)], ["left", "plain"], [mask, mask], 8, 8, flip_copies=True)
    assert captions == ["left", "left", "plain", "plain"]
    assert images[0][:, :4].min() == 1 and images[0][:, 4:].max() == 0
    assert images[1][:, :4].max() == 0 and images[1][:, 4:].min() == 1
    assert masks[0][0, 0] == 0.5 and masks[0][0, -1] == 0
    assert masks[1][0, 0] == 0 and masks[1][0, -1] == 0.5
    assert len(images) == len(masks) == 4


def test_a_mask_is_cut_where_its_picture_is():
    image = ramp(40, 100)[None]
    for mask in (image[..., 0], resize(image[0, ..., 0], 50, 20, "squash")):
        (done,), _, (done_mask,) = preprocess([image], None, [mask], 32, 32, "crop")
        assert (done[..., 0] - done_mask).abs().max() < 0.02


def test_masks_follow_pictures_that_are_kept():
    (image,), _, (mask,) = preprocess([plain(0.5, 20, 30)], None, [torch.ones(1, 7, 9)], 64, 64, "keep")
    assert image.shape == (20, 30, 3)
    assert mask.shape == (20, 30)


def test_without_captions_and_masks():
    images, captions, masks = preprocess([plain(0.5, 333, 517), plain(0.5)], None, None, 64, 64)
    assert captions == ["", ""]
    assert all(torch.equal(mask, torch.ones(64, 64)) for mask in masks)
    assert len(images) == 2


def test_one_caption_and_mask_for_all():
    _, captions, masks = preprocess([plain(0.1), plain(0.2)], ["all"], [torch.full((5, 5), 0.25)], 16, 16)
    assert captions == ["all", "all"]
    assert all(torch.equal(mask, torch.full((16, 16), 0.25)) for mask in masks)


@pytest.mark.parametrize("captions", [[], ["a", "b"], ["a"] * 4])
def test_counts_must_match(captions):
    with pytest.raises(ValueError, match=f"{len(captions)} captions for 3 pictures"):
        preprocess([plain(0.1)] * 3, captions, None, 16, 16)
    with pytest.raises(ValueError, match=f"{len(captions)} masks for 3 pictures"):
        preprocess([plain(0.1)] * 3, None, [torch.ones(4, 4) for _ in captions], 16, 16)
