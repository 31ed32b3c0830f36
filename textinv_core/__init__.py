"""Textual inversion: what the nodes and the command line are faces of. Knows no node, no server, no page."""

from .embedding import Embedding
from .formats import load_embedding, save_embedding
from .prompts import filewords
from .schedule import LearningRateSchedule
from .shuffle import ShuffleConfig

__all__ = [
    "Embedding",
    "LearningRateSchedule",
    "ShuffleConfig",
    "filewords",
    "load_embedding",
    "save_embedding",
]
