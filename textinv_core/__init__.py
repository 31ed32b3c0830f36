"""Textual inversion: what the nodes and the command line are faces of. Knows no node, no server, no page."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedding import Embedding
    from .formats import load_embedding, save_embedding
    from .prompts import filewords
    from .schedule import LearningRateSchedule
    from .shuffle import ShuffleConfig

__version__ = "0.1.0"  # as in pyproject.toml, which is not there where the core is installed
__all__ = [
    "Embedding",
    "LearningRateSchedule",
    "ShuffleConfig",
    "__version__",
    "filewords",
    "load_embedding",
    "save_embedding",
]

_MODULES = {
    "Embedding": "embedding",
    "LearningRateSchedule": "schedule",
    "ShuffleConfig": "shuffle",
    "filewords": "prompts",
    "load_embedding": "formats",
    "save_embedding": "formats",
}


def __getattr__(name: str) -> Any:
    # Only when asked for, because torch takes seconds to import, and `textinv --help` needs none of it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
