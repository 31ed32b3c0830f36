"""The facts that files and metadata carry along: which of them outlive a change of the embedding."""

from collections.abc import Mapping
from typing import Any

# Facts that every save states anew, and a hash that no longer holds then.
RESTATED = {
    "modelspec.sai_model_spec",
    "modelspec.title",
    "modelspec.architecture",
    "modelspec.trigger_phrase",
    "modelspec.usage_hint",
    "modelspec.date",
    "modelspec.hash_sha256",
    "textinv.encoder",
    "textinv.step",
    "textinv.vectors",
}


def lasting(facts: Mapping[Any, Any]) -> dict[str, str]:
    """Those facts of a file, or of an embedding's metadata, that hold for a changed embedding too."""
    return {
        key: value
        for key, value in facts.items()
        if isinstance(key, str)
        and isinstance(value, str)
        and key.startswith(("textinv.", "modelspec."))
        and key not in RESTATED
        and _is_text(key + value)
    }


def _is_text(text: str) -> bool:
    """Whether a file can hold it: pickles and JSON may have halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
