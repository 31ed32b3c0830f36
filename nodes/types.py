"""What the node files share: the pack's socket types, its category, inputs for the core's settings, and errors as
validation wants them."""

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..textinv_core.described import description
from ..textinv_core.errors import UserError

EmbeddingType = io.Custom("TEXTINV_EMBEDDING")
ShuffleType = io.Custom("TEXTINV_SHUFFLE")

CATEGORY = "training/textual inversion"


def setting(kind: Any, settings: type, name: str, prefix: str = "", **of_widget: Any) -> Any:
    """The input for a setting of the core, `name` of a dataclass: called, described and with the default as there.

    kind: `io.Int` or another with a widget. prefix: stands before its name. of_widget: what that takes besides, or in
    place of these.
    """
    default = settings.__dataclass_fields__[name].default
    return kind.Input(prefix + name, **{"default": default, "tooltip": description(settings, name), **of_widget})


def sentence(check: Callable[[Any], Any], value: Any) -> bool | str:
    """What `check` has against `value`, or True: the answer that `validate_inputs` gives."""
    try:
        check(value)
    except UserError as error:
        return str(error)
    return True
