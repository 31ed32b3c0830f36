"""The host's model families, made small of its own classes, with random weights.

Import `pack` before anything of this package.
"""

from .family import Family
from .of_clip_and_t5 import FAMILIES as OF_CLIP_AND_T5
from .of_llms import FAMILIES as OF_LLMS

FAMILIES: dict[str, Family] = {family.name: family for family in (*OF_CLIP_AND_T5, *OF_LLMS)}
