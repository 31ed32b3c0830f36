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


MAX_BYTES = 512 * 1024  # of all: a picture of the model library, and with it still a pickle that is read


def lasting(facts: Mapping[Any, Any]) -> dict[str, str]:
    """Those facts of a file, or of an embedding's metadata, that hold for a changed embedding too, as far as every kind
    of file can hold them."""
    kept, size = {}, 0
    for key, value in facts.items():
        if not isinstance(key, str) or not isinstance(value, str) or key in RESTATED:
            continue
        if not key.startswith(("textinv.", "modelspec.")):
            continue
        try:
            added = len((key + value).encode())
        except UnicodeEncodeError:  # pickles and JSON may have halves of surrogate pairs
            continue
        if size + added <= MAX_BYTES:
            kept[key], size = value, size + added
    return kept
