"""Embeddings in `.safetensors`: one tensor per encoder key, facts for the Model Library in the header."""

from datetime import datetime, timezone
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..embedding import Embedding, safe_name
from ..errors import UserError
from ..files import write_atomically
from .bundles import bundled, chosen
from .facts import lasting
from .limits import MAX_FILE_BYTES, check_size
from .tensors import to_store, vectors_of

# https://github.com/Stability-AI/ModelSpec
ARCHITECTURES = {
    ("clip_l",): "stable-diffusion-v1/textual-inversion",
    ("clip_h",): "stable-diffusion-v2/textual-inversion",
    ("clip_g", "clip_l"): "stable-diffusion-xl-v1-base/textual-inversion",
}


def read(path: Path, name: str | None = None) -> Embedding:
    """Read an embedding of ours or of another program, or the one called `name` in a LoRA; see `load_embedding`."""
    bundle = bundled(path)
    if bundle:  # whose weights stay where they are
        stem = chosen(sorted(bundle), name, path.name)
    else:
        check_size(path, MAX_FILE_BYTES)
        stem = path.stem
    try:
        with safe_open(path, "pt") as file:
            facts = {} if bundle else file.metadata() or {}  # a LoRA's are its own
            keys = bundle[stem] if bundle else {key: key for key in file.keys()}  # noqa: SIM118  (no mapping)
            tensors = {key: file.get_tensor(stored) for key, stored in keys.items()}
            vectors = vectors_of(tensors, "textinv.vectors" in facts, path.name)
    except (SafetensorError, NotImplementedError) as error:  # torch knows float types it cannot convert
        raise UserError(f"{path.name!r} cannot be read as safetensors: {error}. Is it whole?") from None
    step = facts.get("textinv.step", "")
    # Digits only, and few: the header is someone else's text.
    known_step = int(step) if step.isdecimal() and len(step) < 19 else None
    return Embedding(safe_name(stem), vectors, known_step, lasting(facts))


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
    write_atomically(path, save(to_store(embedding), facts))
