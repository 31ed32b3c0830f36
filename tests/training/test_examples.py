import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeHost
from textinv_core.picture import Picture
from textinv_core.training.examples import (
    Example,
    batches_per_epoch,
    buckets,
    crop_to_multiple,
    encoded_examples,
    epoch,
    loss_weights,
)

SIZES = [(8, 8), (8, 12), (12, 8), (16, 4)]  # two of them with equally many places


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def examples_of(size_numbers):
    return [Example(torch.zeros(4, *SIZES[number])) for number in size_numbers]


some_examples = st.lists(st.integers(0, len(SIZES) - 1), min_size=1, max_size=30).map(examples_of)


# Batches


@given(some_examples, st.integers(1, 12), st.integers(0, 2**32))
def test_an_epoch_holds_each_example_once_in_batches_of_one_shape(examples, batch_size, seed):
    drawn = epoch(examples, batch_size, generator(seed))
    assert sorted(itertools.chain(*drawn)) == list(range(len(examples)))
    assert all(len({examples[i].latent.shape for i in batch}) == 1 for batch in drawn)
    assert all(1 <= len(batch) <= batch_size for batch in drawn)
    assert len(drawn) == batches_per_epoch(examples, batch_size)
    # As few as can be: one bucket has one batch at most that is not full.
    partial = [examples[batch[0]].latent.shape for batch in drawn if len(batch) < batch_size]
    assert len(partial) == len(set(partial))


def test_the_last_batch_of_a_bucket_is_smaller():
    examples = examples_of([0] * 5 + [1] * 3 + [2] * 2)
    assert sorted(map(len, epoch(examples, 2, generator()))) == [1, 1, 2, 2, 2, 2]
    assert batches_per_epoch(examples, 2) == 6
    assert batches_per_epoch(examples, 1) == 10
    assert batches_per_epoch(examples, 99) == 3


def test_buckets():
    assert buckets(examples_of([2, 0, 2, 1, 0])) == [[0, 2], [1, 4], [3]]


def test_the_seed_decides_the_order():
    examples = examples_of([0] * 12 + [1] * 12)
    assert epoch(examples, 3, generator(1)) == epoch(examples, 3, generator(1))
    assert epoch(examples, 3, generator(1)) != epoch(examples, 3, generator(2))


def test_batches_mix_pictures_and_buckets():
    examples = examples_of([0] * 12 + [1] * 12)
    drawn = epoch(examples, 3, generator())
    assert {tuple(sorted(batch)) for batch in drawn} != {tuple(range(i, i + 3)) for i in range(0, 24, 3)}
    shapes = [examples[batch[0]].latent.shape for batch in drawn]
    assert shapes != sorted(shapes) and shapes != sorted(shapes, reverse=True)


def test_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    epoch(examples_of([0] * 5), 2, generator())
    assert torch.equal(torch.get_rng_state(), before)


# Masks


def test_weights_are_the_mask_averaged_over_cells_from_0_with_mean_1():
    mask = torch.tensor([[0.5, 0.5, 1.0, 0.0], [0.5, 0.5, 1.0, 1.0], [1, 1, 1, 1], [1, 1, 1, 1]])
    # By cell: 0.5 0.75, 1 1; less the least: 0 0.25, 0.5 0.5, whose mean is 0.3125.
    assert torch.allclose(loss_weights(mask, 2, 2), torch.tensor([[0.0, 0.8], [1.6, 1.6]]))


def test_height_and_width_are_not_swapped():
    mask = torch.zeros(8, 16)
    mask[:, 8:] = 1
    assert torch.equal(loss_weights(mask, 2, 4), torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 2))
    mask = torch.zeros(8, 16)
    mask[4:] = 1
    assert torch.equal(loss_weights(mask, 2, 4), torch.tensor([[0.0] * 4, [2.0] * 4]))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_weights_have_mean_1_and_least_0(mask_height, mask_width, height, width, seed):
    weights = loss_weights(torch.rand(mask_height, mask_width, generator=generator(seed)), height, width)
    assert weights.shape == (height, width)
    assert weights.dtype == torch.float32
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)
    assert weights.min() == (0 if weights.unique().numel() > 1 else 1)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_uniform_mask_weights_nothing(value):
    # 49x33 does not divide into 7x5 cells evenly: averages of equal numbers differ by rounding.
    assert torch.equal(loss_weights(torch.full((49, 33), value), 7, 5), torch.ones(7, 5))


def test_masks_of_other_types():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:2] = True
    assert torch.equal(loss_weights(mask, 2, 2), torch.tensor([[2.0, 2.0], [0.0, 0.0]]))


# Cropping


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(16, 24, (0, 16), (0, 24)), (21, 24, (2, 18), (0, 24)), (16, 31, (0, 16), (3, 27)), (8, 15, (0, 8), (3, 11))],
)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_the_middle_is_kept(height, width, rows, columns, channels):
    picture = torch.arange(height * width).reshape(height, width)[(..., *[None] * len(channels))]
    picture = picture.expand(height, width, *channels)
    assert torch.equal(crop_to_multiple(picture, 8), picture[slice(*rows), slice(*columns)])


@pytest.mark.parametrize("size", [(7, 64), (64, 7), (7, 7)])
def test_a_picture_too_small_is_an_error_that_says_its_size(size):
    with pytest.raises(ValueError, match=f"{size[1]}x{size[0]} pixels is too small.* at least 8 pixels"):
        crop_to_multiple(torch.zeros(*size, 3), 8)


# Encoding


class Host(FakeHost):
    """Latents are every eighth pixel; keeps the pixels it was given."""

    latent_multiple = 8

    def encode(self, images):
        self.given = [*getattr(self, "given", ()), *images]
        return [image.movedim(-1, 0)[:, ::8, ::8] for image in images]


def test_pictures_and_masks_are_cropped_alike(caplog):
    caplog.set_level("INFO", "textinv")
    mask = torch.zeros(18, 16)
    mask[1:9] = 1  # the upper half of what is left of the picture
    host = Host()
    pictures = [
        Picture(torch.rand(18, 16, 3), mask, "a", "first"),
        Picture(torch.rand(8, 8, 3), torch.ones(8, 8), "b", "sub/second"),
    ]
    first, second = encoded_examples(host, pictures)
    assert torch.equal(host.given[0], pictures[0].pixels[1:17]) and len(host.given) == 2
    assert (first.latent.shape, second.latent.shape) == ((3, 2, 2), (3, 1, 1))
    assert [(each.caption, each.name) for each in (first, second)] == [("a", "first"), ("b", "sub/second")]
    assert torch.equal(first.weights, torch.tensor([[2.0, 2.0], [0.0, 0.0]]))
    assert torch.equal(second.weights, torch.ones(1, 1))
    assert (first.size, second.size) == ((16, 16), (8, 8))
    assert "1 of 2 pictures, such as one of 16x18 pixels, are cut at the edges: this model takes sides" in caplog.text


def test_what_is_encoded_in_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        picture = Picture(torch.rand(8, 8, 3), torch.ones(8, 8), "", "1")
        [example] = encoded_examples(Host(), [picture])
    assert not example.latent.is_inference()
