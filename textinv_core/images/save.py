"""Pictures written to disk."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..files import write_atomically


def save_picture(image: Tensor, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Write a picture [H, W, 3] in 0..1 as PNG, whole or not at all. texts: by the name of the chunk they go into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    info = PngImagePlugin.PngInfo()
    for name, text in (texts or {}).items():
        info.add_text(name, text)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", pnginfo=info)
    write_atomically(path, data.getvalue())
