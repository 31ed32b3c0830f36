"""ComfyUI's lists and batches as pictures, and back."""

import pytest
import torch

from textinv_core.errors import UserError
from textinv_core.images import as_lists, as_pictures
from textinv_core.images.batches import split_batches


def test_batches_are_split_and_channels_made_three():
    four = torch.rand(2, 3, 4, 4)
    grey = torch.rand(3, 4, 1)
    singles = split_batches([four, grey, torch.rand(5, 6, 3).half()])
    assert [tuple(s.shape) for s in singles] == [(3, 4, 3), (3, 4, 3), (3, 4, 3), (5, 6, 3)]
    assert {s.dtype for s in singles} == {torch.float32}
    assert torch.equal(singles[1], four[1, ..., :3])
    assert torch.equal(singles[2][..., 2], grey[..., 0])


def plain(value: float, height: int = 10, width: int = 12) -> torch.Tensor:
    return torch.full((1, height, width, 3), value)


def test_each_picture_has_its_caption_mask_and_name():
    pictures = as_pictures(
        [torch.cat([plain(0.1), plain(0.2)]), plain(0.3, 30, 20)],
        ["one", "two", "three"],
        [torch.stack([torch.full((10, 12), v) for v in (0.1, 0.2)]), torch.full((30, 20), 0.3)],
    )
    assert [(each.caption, each.name) for each in pictures] == [("one", "1"), ("two", "2"), ("three", "3")]
    assert [tuple(each.pixels.shape) for each in pictures] == [(10, 12, 3), (10, 12, 3), (30, 20, 3)]
    for value, each in zip([0.1, 0.2, 0.3], pictures, strict=True):
        assert torch.equal(each.pixels, torch.full(each.pixels.shape, value))
        assert torch.equal(each.mask, torch.full(each.pixels.shape[:2], value))


def test_without_captions_masks_and_names():
    pictures = as_pictures([torch.cat([plain(0.5, 333, 517)] * 2), plain(0.5)])
    assert [each.caption for each in pictures] == ["", "", ""]
    assert [each.name for each in pictures] == ["1", "2", "3"]
    assert all(torch.equal(each.mask, torch.ones(each.pixels.shape[:2])) for each in pictures)


def test_one_caption_and_mask_for_all():
    pictures = as_pictures([plain(0.1), plain(0.2)], ["all"], [torch.full((5, 5), 0.25)])
    assert [each.caption for each in pictures] == ["all", "all"]
    assert all(torch.equal(each.mask, torch.full((10, 12), 0.25)) for each in pictures)


def test_a_mask_of_another_size_is_stretched_over_its_picture():
    columns = torch.linspace(0, 1, 100).expand(40, 100)
    [stretched] = as_pictures([torch.rand(1, 40, 100, 3)], masks=[columns[::2, ::2]])
    assert stretched.mask.shape == (40, 100)
    assert (stretched.mask - columns).abs().max() < 0.02


@pytest.mark.parametrize("captions", [[], ["a", "b"], ["a"] * 4])
def test_counts_must_match(captions):
    with pytest.raises(UserError, match=f"{len(captions)} captions for 3 pictures"):
        as_pictures([plain(0.1)] * 3, captions)
    with pytest.raises(UserError, match=f"{len(captions)} masks for 3 pictures"):
        as_pictures([plain(0.1)] * 3, masks=[torch.ones(4, 4) for _ in captions])


def test_lists_and_back():
    images, captions, masks, names = as_lists(as_pictures([plain(0.1), plain(0.2, 8, 9)], ["a", "b"]))
    assert [tuple(image.shape) for image in images] == [(1, 10, 12, 3), (1, 8, 9, 3)]
    assert [tuple(mask.shape) for mask in masks] == [(1, 10, 12), (1, 8, 9)]
    assert (captions, names) == (["a", "b"], ["1", "2"])
    assert torch.equal(images[1], plain(0.2, 8, 9))
