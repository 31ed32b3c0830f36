"""Latents that pictures have been encoded to, kept while the process lives: another try encodes nothing again."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock

import torch
from torch import Tensor

from ..hosts.base import Host

# Those of 4,000 pictures of 512x512 pixels for SD1.x, of 256 of 1024x1024 for models with 16 channels.
MOST_BYTES = 256 * 2**20


class Latents:
    """Latents by what they were made of, up to so many bytes in all: those that were not asked for the longest go
    first. Any thread may use it."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes, self._bytes = most_bytes, 0
        self._latents: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> Tensor | None:
        with self._lock:
            if key in self._latents:
                self._latents.move_to_end(key)
            return self._latents.get(key)

    def keep(self, key: str, latent: Tensor) -> None:
        """latent: nobody may write into it."""
        with self._lock:
            self._bytes += latent.nbytes - (self._latents[key].nbytes if key in self._latents else 0)
            self._latents[key] = latent
            self._latents.move_to_end(key)
            while self._bytes > self._most_bytes:
                _, oldest = self._latents.popitem(last=False)
                self._bytes -= oldest.nbytes


KEPT = Latents()


def latents(host: Host, images: Sequence[Tensor]) -> Iterator[Tensor]:
    """The latents of pictures, as `Host.encode` makes them, one after another, for autograd to use; encoded only where
    they are not kept from before. Nobody may write into them."""
    encoding = host.encoding()
    for image in images:
        key = f"{encoding} {list(image.shape)} {_digest(image)}"
        latent = KEPT.get(key)
        if latent is None:
            [encoded] = host.encode([image])
            with torch.inference_mode(False):
                latent = encoded.clone()
            KEPT.keep(key, latent)
        yield latent


def _digest(image: Tensor) -> str:
    return hashlib.sha256(image.cpu().contiguous().numpy().data).hexdigest()
