"""What the node files share: the pack's socket types, its category, and errors as validation wants them."""

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

EmbeddingType = io.Custom("TEXTINV_EMBEDDING")
ShuffleType = io.Custom("TEXTINV_SHUFFLE")

CATEGORY = "training/textual inversion"


def sentence(check: Callable[[Any], Any], value: Any) -> bool | str:
    """What `check` has against `value`, or True: the answer that `validate_inputs` gives."""
    try:
        check(value)
    except ValueError as error:
        return str(error)
    return True
