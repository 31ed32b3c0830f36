"""Embeddings in `.safetensors`: one tensor per encoder key, facts for the Model Library in the header."""

from datetime import datetime, timezone
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..embedding import UNREAD, Embedding, safe_name
from ..errors import UserError
from ..files import write_atomically
from .bundles import bundled, chosen
from .facts import lasting
from .limits import MAX_HEADER_BYTES, MAX_TENSOR_BYTES, check_file, check_total
from .tensors import T5, T5_ELSEWHERE, counted, to_store, vectors_of

# https://github.com/Stability-AI/ModelSpec
ARCHITECTURES = {
    ("clip_l",): "stable-diffusion-v1/textual-inversion",
    ("clip_h",): "stable-diffusion-v2/textual-inversion",
    ("clip_g", "clip_l"): "stable-diffusion-xl-v1-base/textual-inversion",
}


def check_header(path: Path) -> None:
    """Raise UserError for a header too long to be parsed; the tensors may be of any size, they are mapped."""
    check_file(path, None)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise UserError(
            f"{path.name!r} cannot be read as safetensors: its header would have {length / 2**20:.0f} MiB, and "
            f"{MAX_HEADER_BYTES / 2**20:.0f} are the most that is read. Is it whole?"
        )


def read(path: Path, name: str | None = None) -> Embedding:
    """Read an embedding of ours or of another program, or the one called `name` in a LoRA; see `load_embedding`."""
    check_header(path)
    bundle = bundled(path)
    stem = chosen(sorted(bundle), name, path.name) if bundle else path.stem
    try:
        with safe_open(path, "pt") as file:
            facts = {} if bundle else file.metadata() or {}  # a LoRA's are its own
            keys = bundle[stem] if bundle else {key: key for key in file.keys()}  # noqa: SIM118  (no mapping)
            shapes = {key: file.get_slice(stored).get_shape() for key, stored in keys.items()}
            check_total(counted(shapes), MAX_TENSOR_BYTES, path.name)
            tensors = {key: file.get_tensor(stored) for key, stored in keys.items()}
            vectors = vectors_of(tensors, "textinv.vectors" in facts, path.name)
    except (SafetensorError, NotImplementedError) as error:  # torch knows float types it cannot convert
        raise UserError(f"{path.name!r} cannot be read as safetensors: {error}. Is it whole?") from None
    step = facts.get("textinv.step", "")
    # Digits only, and few: the header is someone else's text.
    known_step = int(step) if step.isdecimal() and len(step) < 19 else None
    return Embedding(safe_name(stem), vectors, known_step, lasting(facts))


def _usage(embedding: Embedding, name: str) -> str:
    if UNREAD in embedding.metadata:
        return f"In ComfyUI, feed Apply Embedding from Load Embedding, and write embedding:{name} in a prompt."
    return f"Write embedding:{name} in a prompt, or (embedding:{name}:1.2) to weigh it."


def write(embedding: Embedding, path: Path) -> None:
    """Write `embedding` with the keys its encoders have in ComfyUI; see `save_embedding`.

    T5's vectors are there once more under the key that OneTrainer, and diffusers' guide for Flux, look for.
    """
    tensors = to_store(embedding)
    if T5 in tensors and T5_ELSEWHERE not in tensors:
        tensors[T5_ELSEWHERE] = tensors[T5].clone()
    facts = dict(embedding.metadata)
    facts |= {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": embedding.name,
        "modelspec.trigger_phrase": f"embedding:{path.stem}",
        "modelspec.usage_hint": _usage(embedding, path.stem),
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "textinv.vectors": str(max(len(rows) for rows in embedding.vectors.values())),
    }
    if architecture := ARCHITECTURES.get(tuple(sorted(embedding.vectors))):
        facts["modelspec.architecture"] = architecture
    if embedding.step is not None:
        facts["textinv.step"] = str(embedding.step)
    write_atomically(path, save(tensors, facts))
