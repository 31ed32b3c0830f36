"""Embeddings bundled in the file of a LoRA, as `bundle_emb.<name>.<key>` beside its weights.

A1111 began it (its pull request 13568), OneTrainer writes it. <name> is what prompts call the embedding, and <key> what
stands in a file of its own: an encoder key, `emb_params`, or `string_to_param.*`.
"""

import json
import re
from pathlib import Path

from ..errors import SettingError, UserError
from .limits import MAX_HEADER_BYTES

# The shortest name that leaves a key: names may have dots, keys have none but A1111's.
BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\.\*|[^.]+)", re.DOTALL)


def bundled(path: Path) -> dict[str, dict[str, str]]:
    """Name of each embedding bundled in a `.safetensors` file -> its key -> that of the tensor in the file.

    Only the file's header is read, however large it is; what is damaged holds none. OSError where it cannot be opened.
    """
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, MAX_HEADER_BYTES))
    if b'"bundle_emb.' not in header:  # thirty times quicker than reading all keys of a LoRA
        return {}
    try:
        keys = json.loads(header)
    except (ValueError, RecursionError):
        return {}
    found: dict[str, dict[str, str]] = {}
    for key in keys if isinstance(keys, dict) else ():
        if match := BUNDLED.fullmatch(key):
            found.setdefault(match[1], {})[match[2]] = key
    return found


def chosen(names: list[str], name: str | None, file: str) -> str:
    """`name`, or the only one of `names` where it is None. Raises UserError that lists them for any other."""
    if name in names or (name is None and len(names) == 1):
        return name or names[0]
    listed = ", ".join(repr(each[:64]) for each in names[:20]) + (", ..." if len(names) > 20 else "")
    if name is None:
        raise SettingError(
            lambda called: f"{file!r} holds {len(names)} embeddings, {listed}: choose one of them by {called('name')}."
        )
    raise UserError(f"{file!r} holds no embedding {name[:64]!r}, but {listed}.")
