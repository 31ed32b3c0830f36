"""Embeddings in `.safetensors`: one tensor per encoder key, facts for the Model Library in the header."""

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..embedding import Embedding, safe_name
from ..files import write_atomically

MAX_FILE_BYTES = 256 * 1024 * 1024

# The keys other programs write. More of ComfyUI's encoders take embeddings; files of our own may use any of them.
ENCODER_KEYS = {"clip_l", "clip_g", "clip_h", "t5xxl", "llama", "qwen3_4b", "qwen3_8b", "mistral3_24b", "ministral3_3b"}
KEY_BY_WIDTH = {768: "clip_l", 1280: "clip_g", 1024: "clip_h", 4096: "t5xxl"}

# https://github.com/Stability-AI/ModelSpec
ARCHITECTURES = {
    ("clip_l",): "stable-diffusion-v1/textual-inversion",
    ("clip_h",): "stable-diffusion-v2/textual-inversion",
    ("clip_g", "clip_l"): "stable-diffusion-xl-v1-base/textual-inversion",
}
# Facts that every save states anew, and a hash that no longer holds then.
RESTATED = {
    "modelspec.sai_model_spec",
    "modelspec.title",
    "modelspec.architecture",
    "modelspec.trigger_phrase",
    "modelspec.usage_hint",
    "modelspec.date",
    "modelspec.hash_sha256",
    "textinv.step",
    "textinv.vectors",
}


def _vectors(tensors: Mapping[str, Tensor], ours: bool, file: str) -> dict[str, Tensor]:
    """Tensors as stored -> encoder key -> float32 [n, dim]. A 1-D tensor is one vector.

    ours: whether the keys are known to be encoder keys. Otherwise a single tensor under another key (`emb_params`,
    `*`, ...) gets the key that goes with its width.
    """
    vectors = {}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.ndim not in (1, 2) or tensor.numel() == 0:
            raise ValueError(
                f"{file!r} is no embedding: {key!r} is {tensor.dtype} of shape {list(tensor.shape)}, not vectors."
            )
        rows = torch.atleast_2d(tensor).to(torch.float32, copy=True)  # a copy, as stored tensors are the mapped file
        if not rows.isfinite().all():
            raise ValueError(f"{file!r} is damaged: {key!r} holds values that are not finite numbers.")
        vectors[key] = rows
    if ours or vectors.keys() <= ENCODER_KEYS:
        return vectors
    if len(vectors) > 1:
        keys = ", ".join(list(vectors)[:4])
        raise ValueError(f"{file!r} is no embedding: it holds {len(vectors)} tensors ({keys}, ...), not encoder keys.")
    [(key, rows)] = vectors.items()
    width = rows.shape[1]
    if width not in KEY_BY_WIDTH:
        known = ", ".join(f"{width} ({key})" for width, key in KEY_BY_WIDTH.items())
        raise ValueError(f"{file!r} holds vectors of width {width} under {key!r}; widths known are {known}.")
    return {KEY_BY_WIDTH[width]: rows}


def read(path: Path) -> Embedding:
    """Read an embedding of ours or of another program; see `load_embedding`."""
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise ValueError(f"{path.name!r} is no embedding: it has {size / 2**20:.0f} MiB, embeddings have 256 at most.")
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
            vectors = _vectors(tensors, "textinv.vectors" in facts, path.name)
    except (SafetensorError, NotImplementedError) as error:  # torch knows float types it cannot convert
        raise ValueError(f"{path.name!r} cannot be read as safetensors: {error}. Is it whole?") from None
    step = facts.get("textinv.step", "")
    kept = {k: v for k, v in facts.items() if k.startswith(("textinv.", "modelspec.")) and k not in RESTATED}
    # Digits only, and few: the header is someone else's text.
    known_step = int(step) if step.isdecimal() and len(step) < 19 else None
    return Embedding(safe_name(path.stem), vectors, known_step, kept)


def write(embedding: Embedding, path: Path) -> None:
    """Write `embedding` with the keys its encoders have in ComfyUI; see `save_embedding`."""
    facts = dict(embedding.metadata)
    facts |= {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": embedding.name,
        "modelspec.trigger_phrase": f"embedding:{path.stem}",
        "modelspec.usage_hint": f"Write embedding:{path.stem} in a prompt, or (embedding:{path.stem}:1.2) to weigh it.",
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "textinv.vectors": str(max(len(rows) for rows in embedding.vectors.values())),
    }
    if architecture := ARCHITECTURES.get(tuple(sorted(embedding.vectors))):
        facts["modelspec.architecture"] = architecture
    if embedding.step is not None:
        facts["textinv.step"] = str(embedding.step)
    # New memory each: safetensors refuses tensors that share theirs.
    tensors = {
        key: rows.detach().cpu().clone(memory_format=torch.contiguous_format) for key, rows in embedding.vectors.items()
    }
    write_atomically(path, save(tensors, facts))
