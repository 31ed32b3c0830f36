"""Embeddings in pictures, as A1111 shares them: in a text chunk of the PNG, and once more in its pixels.

Both hold the dictionary of `a1111` as JSON. What passes pictures on often drops text, so stripes left and right of the
picture repeat it, compressed: the lower four bits of every byte to the left, the upper four to the right. There is no
header and no length, only a black column between picture and stripes to know them by.
"""

import base64
import io
import json
import math
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from ..embedding import Embedding, safe_name
from ..errors import UserError
from ..files import write_atomically
from ..picture_kinds import FURTHER_KINDS
from . import a1111
from .limits import MAX_FILE_BYTES, check_file
from .overlay import written_on

CHUNK = "sd-ti-embedding"
MAX_PIXELS = 10_000_000
MAX_OWN_PIXELS = 7_000_000  # of what is written; stripes for 75 vectors of T5 are 2.4 million beside them
MAX_JSON_BYTES = 8 * 1024 * 1024  # 75 vectors of T5 have 6.8 MB
MAX_JSON_BRACKETS = 10_000  # a list for each vector; objects and lists of nothing take fifty times their text
ROWS = 64  # of a picture are looked at together


def to_json(data: dict[str, Any]) -> bytes:
    """A1111's JSON of a dictionary with tensors, to the byte."""
    return json.dumps(data, default=lambda tensor: {"TORCHTENSOR": tensor.tolist()}).encode()


def from_json(text: bytes) -> Any:
    """What `to_json` was given, tensors as float64. Raises ValueError, TypeError or RecursionError."""
    if text.count(b"[") + text.count(b"{") > MAX_JSON_BRACKETS:
        raise ValueError(f"its text has more than {MAX_JSON_BRACKETS} lists and objects")

    def as_tensor(stored: dict[str, Any]) -> Any:
        if "TORCHTENSOR" not in stored:
            return stored
        return torch.from_numpy(np.array(stored["TORCHTENSOR"], dtype=np.float64))

    return json.loads(text, object_hook=as_tensor)


def from_base64(chunk: str) -> bytes:
    """The JSON in a text chunk. Raises ValueError."""
    if (size := len(chunk) * 3 // 4) > MAX_JSON_BYTES:
        raise ValueError(f"its text has {size / 2**20:.0f} MiB, embeddings have {MAX_JSON_BYTES / 2**20:.0f} at most")
    return base64.b64decode(chunk)


def noise(n: int) -> np.ndarray:
    """The first n numbers of A1111's generator, uint8: s' = 1664525 s + 1013904223 mod 2^32 from 0, each s mod 255."""
    states = np.full(1, 1013904223, np.uint32)
    factor, summand = 1664525, 1013904223
    while len(states) < min(n, 2**16):
        # As many steps at once as there are states already; two such jumps make the next one.
        states = np.concatenate([states, states * np.uint32(factor) + np.uint32(summand)])
        factor, summand = factor * factor % 2**32, (factor + 1) * summand % 2**32
    numbers = np.empty(n, np.uint8)
    for start in range(0, n, len(states)):
        numbers[start : start + len(states)] = (states % 255)[: n - start]
        states = states * np.uint32(factor) + np.uint32(summand)
    return numbers


def hidden(block: np.ndarray) -> np.ndarray:
    """A stripe with its lower four bits turned to noise, or back."""
    return block ^ (noise(block.size).reshape(block.shape) & 0x0F)


def ornament(width: int, height: int, shades: np.ndarray) -> np.ndarray:
    """A1111's rows of grey dots, uint8 [height, width, 3], in the upper four bits: what a stripe looks like.

    shades: uint8, one per dot, over and over; the vectors themselves, so that every embedding looks its own way.
    """
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    dot = 0
    for x in range(-6, width, 8):
        for row, y in enumerate(range(-6, height, 8)):
            left = x + 4 if row % 2 == 0 else x
            draw.ellipse((left, y, left + 6, y + 6), fill=(int(shades[dot % len(shades)]),) * 3)
            dot += 1
    return np.array(image) & 0xF0


def stripes(text: bytes, height: int, first: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What stands left and right of a picture `height` pixels high to hold `text`: two uint8 [height, width, 3].

    first: the embedding's first vector, [dim], for the ornament.
    """
    compressed = np.frombuffer(zlib.compress(text, level=9), np.uint8)
    size = len(compressed) + height - len(compressed) % height
    size += 3 * height - size % (3 * height)
    vector = np.abs(first[:1024].double().numpy())
    shades = (vector / (vector.max() or 1) * 255).astype(np.uint8)
    made = []
    for bits, order in ((compressed & 0x0F, shades), (compressed >> 4, shades[::-1])):
        block = np.resize(bits, size).reshape(height, -1, 3)
        made.append(hidden(block ^ ornament(block.shape[1], height, order)))
    return made[0], made[1]


def pieces(pixels: np.ndarray) -> list[np.ndarray]:
    """Rows of a picture that are looked at together: what is made of all at once takes as much memory again."""
    return [pixels[row : row + ROWS] for row in range(0, len(pixels), ROWS)]


def decoded(image: Image.Image) -> np.ndarray:
    """The pixels of a picture, uint8 [H, W, 3]."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for row in range(0, image.height, ROWS):
        piece = image.crop((0, row, image.width, min(row + ROWS, image.height)))
        pixels[row : row + ROWS] = np.asarray(piece.convert("RGB"))
    return pixels


def from_pixels(pixels: np.ndarray) -> bytes | None:
    """The text in the stripes of a picture, uint8 [H, W, 3]; None where it has none."""
    lit = np.concatenate([piece.all(axis=2) for piece in pieces(pixels)])
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    if len(columns) == 0:
        return None
    pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    black = np.flatnonzero(~np.logical_or.reduce([(piece & 0x0F).any(axis=(0, 2)) for piece in pieces(pixels)]))
    if len(black) < 2:
        return None
    # Compressed, a text is no longer than it is; whatever stands below repeats it.
    needed = MAX_JSON_BYTES // max(3 * black[0], 1) + 4
    lower, upper = pixels[:needed, : black[0]] & 0x0F, pixels[:needed, black[-1] + 1 :] & 0x0F
    if lower.shape != upper.shape:
        return None
    unzip = zlib.decompressobj()
    try:
        text = unzip.decompress((hidden(upper) << 4 | hidden(lower)).tobytes(), MAX_JSON_BYTES)
    except zlib.error:
        return None
    return text if unzip.eof else None


def is_marked(path: str | os.PathLike[str]) -> bool:
    """Whether a picture says at its beginning that it holds an embedding; without, it may hold one in its pixels."""
    with open(path, "rb") as file:
        return CHUNK.encode() in file.read(2**16)


def _check_pixels(width: int, height: int) -> None:
    """Raise ValueError for a picture that would take too much memory to look at."""
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{width} x {height} are more than {MAX_PIXELS // 10**6} million pixels, which no picture with an "
            "embedding needs"
        )


def _reduced(pixels: np.ndarray) -> np.ndarray:
    """A picture, uint8 [H, W, 3], made smaller where it has more than `MAX_OWN_PIXELS`."""
    height, width = pixels.shape[:2]
    if height * width <= MAX_OWN_PIXELS:
        return pixels
    scale = math.sqrt(MAX_OWN_PIXELS / (height * width))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def read(path: Path) -> Embedding:
    """Read the embedding in a picture, which is called as it was when it was put there; see `load_embedding`."""
    check_file(path, MAX_FILE_BYTES)
    try:
        with Image.open(path, formats=("PNG", "WEBP", *FURTHER_KINDS.values())) as image:
            chunk = image.info.get(CHUNK)  # before the pixels, which need not be decoded then
            if chunk is None:
                _check_pixels(image.width, image.height)
                chunk = getattr(image, "text", {}).get(CHUNK)
            text = from_pixels(decoded(image)) if chunk is None else from_base64(chunk)
        stored = None if text is None else from_json(text)
    except UnidentifiedImageError:
        raise UserError(f"{path.name!r} is not a picture, or of a kind other than its ending says.") from None
    except Exception as error:  # pillow's readers raise anything from struct.error to SyntaxError on broken files
        reason = str(error) or type(error).__name__
        raise UserError(f"{path.name!r} holds no embedding that can be read: {reason}. Is it whole?") from None
    if stored is None:
        raise UserError(
            f"{path.name!r} is a picture without an embedding, in its text and at its sides. If it had one, it has "
            "been cropped, resized or compressed since: get the original file."
        )
    embedding = a1111.from_data(stored, path.stem, path.name)
    name = stored.get("name") if isinstance(stored, dict) else None
    return replace(embedding, name=safe_name(name)) if isinstance(name, str) else embedding


def footers(embedding: Embedding) -> tuple[str, str, str]:
    """What A1111 writes below: the model, its short hash, and vectors and steps, as far as they are known."""
    model = embedding.metadata.get("textinv.sd_checkpoint_name", "")
    short_hash = embedding.metadata.get("textinv.sd_checkpoint", "")
    size = f"{max(map(len, embedding.vectors.values()))}v"
    return (
        "".join(char for char in model[:100] if char.isprintable()),
        f"[{''.join(filter(str.isalnum, short_hash[:20]))}]" if short_hash else "",
        size if embedding.step is None else f"{size} {embedding.step}s",
    )


def write(embedding: Embedding, path: Path, picture: Tensor | None) -> None:
    """Write `picture`, float32 [H, W, 3] in 0..1, with `embedding` in it and what it is on it; see `save_embedding`."""
    if path.suffix.lower() != ".png":
        raise UserError(f"Embeddings are read from {path.suffix} pictures, but only written to .png: name it so.")
    if picture is None:
        raise UserError(f"{path.name!r} needs a picture to keep the embedding in: give one, or write .safetensors.")
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.numel() == 0:
        raise ValueError(f"The picture for {path.name!r} is {list(picture.shape)}, not [height, width, 3].")
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    pixels = written_on(_reduced(pixels), f"<{embedding.name}>", footers(embedding))
    text = to_json(a1111.to_data(embedding, path.name))
    if len(text) > MAX_JSON_BYTES:
        raise UserError(
            f"{path.name!r} was not written: as text the embedding has {len(text) / 2**20:.1f} MiB, and pictures are "
            f"read with {MAX_JSON_BYTES >> 20} at most. Write .safetensors."
        )
    left, right = stripes(text, len(pixels), next(iter(embedding.vectors.values()))[0].detach().cpu())
    black = np.zeros((len(pixels), 1, 3), np.uint8)
    pixels = np.concatenate([left, black, pixels, black, right], axis=1)
    if pixels.shape[0] * pixels.shape[1] > MAX_PIXELS or from_pixels(pixels) != text:
        height, width = picture.shape[:2]
        raise UserError(
            f"A picture of {width} x {height} cannot hold the embedding: take another one, of 64 x 64 or larger."
        )
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, base64.b64encode(text).decode())
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", pnginfo=info)
    write_atomically(path, data.getvalue())
