"""An embedding brought near its pictures before any training, by text encoder and CLIP vision model alone."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize
from torch.optim.lr_scheduler import LambdaLR

from ..embedding import Embedding
from ..errors import UserError
from ..prompts import TEMPLATES, render
from .optimizers import REACH, Turning

log = logging.getLogger("textinv")

# Prompts, and an embedding they name -> where one text encoder's projection puts them, float32 [B, width].
Pooled = Callable[[Sequence[str], Embedding], Tensor]

LINES = TEMPLATES["subject"]
STEPS = 100
# Pairs of a prompt and a picture in a step. QuickEmbedding has 32 of them, on CLIP-L; on SDXL's clip_g that is 4.4 GiB
# instead of 1.1, and four times as long, to average what varies little: there is no timestep and no noise.
BATCH = 8
# Radians a vector turns by in the first step; as that falls linearly to 0, all of them make REACH.
ANGLE = 2 * REACH / STEPS


def warm_start(
    embedding: Embedding, key: str, pictures: Tensor, pooled: Pooled, stepped: Callable[[], Any]
) -> Embedding:
    """`embedding`, with its vectors for the encoder `key` turned to where prompts that name it are near `pictures`.

    pictures: float [N, width], where the vision model that was trained with that encoder puts them. pooled: what the
    encoder makes of prompts, differentiable in the embedding's vectors. stepped: called after each of STEPS steps.

    A step draws BATCH lines and pictures and raises the mean cosine of the pairs. After QuickEmbedding (Ethan Smith,
    https://github.com/ethansmith2000/QuickEmbedding), of which are the idea, the pairs, 100 steps, and a rate of 0.1
    that falls linearly to 0. There it is AdamW's, on a squared angle, and moves every number of a vector by up to 0.1 a
    step, where all of a word's vector is 0.4 long; here `Turning` takes it for radians and keeps the lengths, and as it
    follows only a gradient's direction, the plain cosine will do. There a picture is seen as four cuts, too.

    The same arguments give the same vectors; those for other encoders, lengths and the count of steps stay as they are.
    The log says what the mean cosine of all lines and pictures was before and after. Raises UserError for vectors of
    zeros, and where the models make zeros, or what is no number, of pictures or text.
    """
    started = time.monotonic()
    vectors = [row.clone().requires_grad_() for row in embedding.vectors[key]]
    if not all(vector.any() for vector in vectors):
        raise UserError(
            f"The embedding {embedding.name!r} starts from zeros, which point nowhere and cannot be turned to the "
            "pictures. Give it an init text."
        )
    of_pictures = _directions(
        pictures,
        "The CLIP vision model makes nothing of these pictures that can be compared: zeros, or what is not a number. "
        "Use another file of it.",
    )

    def now() -> Embedding:
        return replace(embedding, vectors={**embedding.vectors, key: torch.stack(vectors)})

    def of_text(lines: Sequence[str]) -> Tensor:
        return _directions(
            pooled([render(line, embedding.name, "") for line in lines], now()),
            f"The text encoder {key} makes nothing of prompts that can be compared: zeros, or what is not a number. "
            "Its file may lack the text projection, as SD2.x's for diffusers does; use another one.",
        )

    @torch.no_grad()
    def cosine() -> float:
        chunks = [of_text(LINES[start : start + BATCH]) for start in range(0, len(LINES), BATCH)]
        return float((torch.cat(chunks) @ of_pictures.to(chunks[0].device).T).mean())

    before = cosine()
    optimizer = Turning(vectors, ANGLE)
    falling = LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    draws = Generator().manual_seed(0)
    for _ in range(STEPS):
        lines, drawn = (torch.randint(len(each), (BATCH,), generator=draws) for each in (LINES, of_pictures))
        text = of_text([LINES[line] for line in lines])
        optimizer.zero_grad()
        (text * -of_pictures[drawn].to(text.device)).sum(1).mean().backward()
        optimizer.step()
        falling.step()
        stepped()
    log.info(
        f"textinv: cosine of {embedding.name} with {len(pictures)} pictures: {before:.2f} -> {cosine():.2f} "
        f"({key}, {STEPS} steps, {time.monotonic() - started:.0f} s)"
    )
    with torch.no_grad():
        return now()


def _directions(vectors: Tensor, where_none: str) -> Tensor:
    """Vectors [n, width] with length 1. Raises UserError, with this sentence, where one of them has no direction."""
    if not (vectors.isfinite().all() and vectors.any(1).all()):
        raise UserError(where_none)
    return normalize(vectors.float(), dim=1)
