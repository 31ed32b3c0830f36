"""Pictures written to disk."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..files import write_atomically


def save_picture(image: Tensor, path: Path) -> None:
    """Write a picture [H, W, 3] in 0..1 as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    write_atomically(path, data.getvalue())
