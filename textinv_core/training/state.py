"""The exact state of a training as a file: tensors, numbers and texts, nothing that could run."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import UserError
from ..files import write_atomically
from ..formats.limits import check_file

FORMAT = "textinv state 1"
MAX_STATE_BYTES = 512 * 2**20  # Adam's two averages, and two copies, of the largest embedding that is read, twice over


class Damaged(UserError):
    """A state that cannot be gone on from."""


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write what `Training.state()` gave, whole or not at all. Raises OSError."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_packed(state, tensors))
    facts = {"format": FORMAT, "tree": tree, "digest": _digest(tree, tensors)}
    write_atomically(path, save(tensors, facts))


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote. Raises Damaged for anything else, also where a single bit is another, and OSError."""
    try:
        check_file(path, MAX_STATE_BYTES)
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            # Copied, because they are the file's own memory, and Windows would not let go of the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        if facts["format"] != FORMAT or facts["digest"] != _digest(facts["tree"], tensors):
            raise ValueError("what it says of itself is not so")
        return _unpacked(json.loads(facts["tree"]), tensors)
    except (SafetensorError, UserError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise Damaged(f"The state in {str(path)!r} is damaged: {error}.") from None


def _digest(tree: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON has it, with its tensors put into `tensors`, and the keys of its dicts as they are."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone()  # no two may share memory
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _packed(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(each, tensors) for each in value]
    return value


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if isinstance(value, dict) and "tensor" in value:
        return tensors[value["tensor"]]
    if isinstance(value, dict):
        return {key: _unpacked(each, tensors) for key, each in value["dict"]}
    return value
