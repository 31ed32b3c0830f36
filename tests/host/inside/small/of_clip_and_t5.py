"""The families whose prompts CLIP and T5 read."""

from .family import Family

FAMILIES: tuple[Family, ...] = ()
