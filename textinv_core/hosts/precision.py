"""What a model can compute in. Imports no torch until it is asked for a type, because flags name these."""

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import dtype

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def dtype_of(precision: str) -> "dtype":
    """The type of that name. Raises KeyError for another, and for `auto`, which each host decides for itself."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
