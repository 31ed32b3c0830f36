"""The families whose prompts a language model reads."""

from .family import Family

FAMILIES: tuple[Family, ...] = ()
