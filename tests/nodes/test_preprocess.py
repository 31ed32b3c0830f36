"""TextInvPreprocess: lists in, lists out."""

import pytest
import torch


@pytest.fixture
def node(node_classes):
    return node_classes["TextInvPreprocess"]


def execute(node, images, width=64, height=96, resize="crop", flip=False, **more):
    # The host gives a node that takes lists every value in a list.
    return node.execute(images=images, width=[width], height=[height], resize=[resize], flip=[flip], **more).args


def test_lists_of_single_pictures_come_out(node):
    batch = torch.rand(2, 50, 40, 4)
    single = torch.rand(1, 30, 90, 3)
    images, captions, masks = execute(node, [batch, single], captions=["a", "b", "c"])
    assert [tuple(image.shape) for image in images] == [(1, 96, 64, 3)] * 3
    assert [tuple(mask.shape) for mask in masks] == [(1, 96, 64)] * 3
    assert captions == ["a", "b", "c"]


def test_resize_and_flip_are_passed_on(node):
    image = torch.zeros(1, 10, 20, 3)
    image[:, :, :10] = 1
    images, captions, masks = execute(node, [image], resize="keep", flip=True, captions=["half"], masks=[image[..., 0]])
    assert torch.equal(images[0], image)
    assert torch.equal(images[1], 1 - image)
    assert torch.equal(masks[1], 1 - image[..., 0])
    assert captions == ["half", "half"]


def test_masks_without_a_batch(node):
    *_, masks = execute(node, [torch.rand(1, 10, 20, 3)], masks=[torch.full((10, 20), 0.5)])
    assert torch.equal(masks[0], torch.full((1, 96, 64), 0.5))


def test_counts_must_match(node):
    with pytest.raises(ValueError, match="2 captions for 3 pictures"):
        execute(node, [torch.rand(3, 8, 8, 3)], captions=["a", "b"])
