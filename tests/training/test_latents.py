"""What has been encoded is kept: by the picture and by what encodes it, up to so many bytes."""

import threading

import pytest
import torch

from tests.fakes import FakeHost, fake_pictures, fixed
from textinv_core.training import latents as module
from textinv_core.training.latents import Latents, latents

LATENT = 3 * 4 * 6 * 4  # bytes of one


class Counting(FakeHost):
    """Notes the pictures that it encodes, and adds `shift` to their latents."""

    vae, shift = "a", 0.0

    def encode(self, images):
        self.did += [f"{image.sum().item():.3f}" for image in images]
        return [latent + self.shift for latent in super().encode(images)]

    def encoding(self):
        return self.vae


@pytest.fixture
def kept(monkeypatch):
    kept = Latents(10 * LATENT)
    monkeypatch.setattr(module, "KEPT", kept)
    return kept


def encoded(host, images):
    """The latents, and how many pictures were encoded for them."""
    before = len([each for each in host.did if each != "encode"])
    made = list(latents(host, images))
    return made, len([each for each in host.did if each != "encode"]) - before


def pixels(n=3):
    return [picture.pixels for picture in fake_pictures(n)]


def test_a_picture_is_encoded_once(kept):
    host, images = Counting(), pixels()
    first, count = encoded(host, images)
    again, none = encoded(Counting(), [image.clone() for image in reversed(images)])
    assert (count, none) == (3, 0)
    assert all(map(torch.equal, again, reversed(first)))
    assert all(map(torch.equal, first, FakeHost().encode(images)))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.transpose(0, 1),
        lambda image: image.flip(1),
        lambda image: torch.cat([image[:-1], image[-1:] + 1e-7]),
        lambda image: image.reshape(24, 16, 3),
    ],
)
def test_another_picture_is_encoded(kept, change):
    host, [image] = Counting(), pixels(1)
    encoded(host, [image])
    made, count = encoded(host, [change(image)])
    assert count == 1 and torch.equal(made[0], FakeHost().encode([change(image)])[0])


def test_another_vae_encodes_anew(kept):
    a, b = Counting(), Counting()
    b.vae, b.shift = "b", 1.0
    [of_a], [of_b] = (encoded(host, pixels(1))[0] for host in (a, b))
    assert torch.equal(of_a + 1, of_b)
    assert torch.equal(encoded(a, pixels(1))[0][0], of_a)


def test_those_not_asked_for_the_longest_go_when_there_are_too_many(kept):
    host, images = Counting(), pixels(12)
    encoded(host, images[:10])
    assert encoded(host, images[:1])[1] == 0
    assert encoded(host, images[10:])[1] == 2
    assert encoded(host, images[:1])[1] == 0  # asked for since
    assert encoded(host, images[3:])[1] == 0
    assert encoded(host, images[1:3])[1] == 2


def test_what_is_larger_than_all_room_is_not_kept(kept):
    host, large = Counting(), [fixed(1, 80, 96, 3, dtype=torch.float32)]
    assert encoded(host, large)[1] == encoded(host, large)[1] == 1
    assert kept._bytes == 0


def test_pictures_that_come_twice_are_one(kept):
    host, [image] = Counting(), pixels(1)
    made, count = encoded(host, [image, image])
    assert count == 1 and torch.equal(*made)
    kept.keep("x", made[0])
    kept.keep("x", made[0])
    assert kept._bytes == 2 * LATENT


def test_a_stop_keeps_what_was_encoded(kept):
    host, images = Counting(), pixels()
    begun = latents(host, images)
    next(begun)
    begun.close()
    assert encoded(host, images)[1] == 2


def test_what_is_encoded_in_inference_mode_can_be_trained_on(kept):
    for _ in range(2):
        with torch.inference_mode():
            [latent] = latents(Counting(), [pixels(1)[0].clone()])
        assert not latent.is_inference()


def test_several_threads_at_once(kept):
    wrong = []

    def work(seed):
        host = Counting()
        for n in torch.randint(15, (200,), generator=torch.Generator().manual_seed(seed)).tolist():
            [latent] = latents(host, [images[n]])
            if not torch.equal(latent, expected[n]):
                wrong.append(n)

    images = pixels(15)
    expected = FakeHost().encode(images)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and kept._bytes == sum(each.nbytes for each in kept._latents.values()) <= 10 * LATENT
