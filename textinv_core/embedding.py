"""The value that travels through everything: one name, some vectors per text encoder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .errors import UserError
from .prompts.syntax import is_number

if TYPE_CHECKING:
    from torch import Tensor

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,100}")
# Names Windows keeps for devices, with or without an extension.
RESERVED_NAMES = {"con", "prn", "aux", "nul"} | {f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10)}

# In metadata, the text encoders of its model for which plain prompts find no embeddings in files.
UNREAD = "textinv.unread"
# What metadata says of the model an embedding was trained on; A1111 writes the last two.
OF_MODEL = ("textinv.base_model", UNREAD, "textinv.sd_checkpoint", "textinv.sd_checkpoint_name")


def unread_text(encoders: str) -> str:
    """What to tell of an embedding whose model does not find it in a file. encoders: their keys, with commas."""
    return (
        f"Plain prompts of this model do not find embedding files for {encoders}: use the embedding through Apply "
        "Embedding."
    )


def safe_name(text: str) -> str:
    """The nearest name to `text` that works in a prompt and as a file name on every system."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_")[:100] or "embedding"
    if is_number(name) or name.lower() in RESERVED_NAMES:
        name = f"my_{name}"[:100]
    return name


def _is_name(text: str) -> bool:
    return bool(NAME_PATTERN.fullmatch(text)) and not is_number(text) and text.lower() not in RESERVED_NAMES


def check_name(name: str) -> str:
    """Return `name` if prompts can use it, else raise UserError with a suggestion.

    A name has 1 to 100 letters (A-Z, a-z), digits, `_` and `-`, is not a number (a prompt would
    read `(embedding:7)` as a weight of 7) and is no device name of Windows.
    """
    if _is_name(name):
        return name
    raise UserError(
        f"An embedding cannot be called {name!r}: prompts only find names of 1 to 100 letters (A-Z), digits, "
        f"'_' and '-' that are neither a number nor a device name. Try {safe_name(name)!r}."
    )


@dataclass(frozen=True)
class Embedding:
    """A textual-inversion embedding.

    name: what prompts call it, `embedding:<name>`; see `check_name`.
    vectors: encoder key (`clip_l`, `clip_g`, `clip_h`, `t5xxl`, ...) -> float32 tensor [n, dim], n >= 1.
    step: optimizer steps it was trained for; None where that is not known, 0 when freshly created.
    metadata: further string facts that files carry along.

    Raises ValueError for a bad name, no vectors, or vectors of another shape or type.
    """

    name: str
    vectors: "Mapping[str, Tensor]"
    step: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        import torch  # not above: the command checks names before it needs torch

        # What people name is checked before it comes here; see `check_name`.
        if not _is_name(self.name):
            raise ValueError(f"{self.name!r} is no name that an embedding can have.")
        if not self.vectors:
            raise ValueError(f"The embedding {self.name!r} has no vectors.")
        for key, rows in self.vectors.items():
            if rows.ndim != 2 or rows.shape[0] == 0 or rows.dtype != torch.float32:
                raise ValueError(
                    f"The vectors {key!r} of the embedding {self.name!r} are {rows.dtype} of shape "
                    f"{list(rows.shape)}; they must be float32 of shape [vectors, width]."
                )

    @property
    def shapes(self) -> str:
        """Its vectors in words, for messages: `clip_l 4 x 768, clip_g 4 x 1280`."""
        return ", ".join(f"{key} {rows.shape[0]} x {rows.shape[1]}" for key, rows in self.vectors.items())


def initial_vectors(rows: "Tensor", vectors: int, keep_first: bool) -> "Tensor":
    """Turn the vectors of an init text, [L, dim], into `vectors` ones, float32 [vectors, dim].

    As A1111 does: vector i is row floor(i * L / vectors), so fewer rows than vectors each come several times, in
    runs. More rows than vectors are cut after the first ones with `keep_first`, else sampled evenly. No rows give
    zeros. `vectors` 0 takes all rows as they are; UserError where there are none.
    """
    import torch

    if vectors == 0 and len(rows) == 0:
        raise UserError("With vectors at 0 the init text decides how many there are, so it cannot be empty.")
    if vectors == 0:
        return rows.clone()
    if len(rows) == 0:
        return torch.zeros(vectors, rows.shape[1])
    if keep_first:
        rows = rows[:vectors]
    return rows[torch.arange(vectors) * len(rows) // vectors].clone()


def create_embedding(name: str, rows: "Mapping[str, Tensor]", vectors: int, keep_first: bool) -> Embedding:
    """A new embedding that starts as the words of an init text; see `initial_vectors`.

    rows: what each text encoder sees of the text, encoder key -> float32 [tokens, dim]. Raises UserError for a bad
    name, and where there are no words and `vectors` is 0.
    """
    made = {key: initial_vectors(of_encoder, vectors, keep_first) for key, of_encoder in rows.items()}
    return Embedding(check_name(name), made, step=0)


def with_model(embedding: Embedding, facts: Mapping[str, str]) -> Embedding:
    """`embedding` with `facts` of the model and pictures it is trained on now, and none of an earlier model."""
    kept = {key: fact for key, fact in embedding.metadata.items() if key not in OF_MODEL}
    return replace(embedding, metadata={**kept, **facts})


def continued(embedding: Embedding, name: str = "") -> Embedding:
    """`embedding` as it is trained further: called `name`, or as it was before its copies were called <name>-<step>.

    Raises as `check_name`.
    """
    if not name:  # what has not been trained has no copies
        name = embedding.name.removesuffix(f"-{embedding.step}") if embedding.step else embedding.name
    return replace(embedding, name=check_name(name))
