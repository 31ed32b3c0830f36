"""Conditioning as models take it."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor


def cond_equal_size(c1: Any, c2: Any) -> bool: ...


def cond_cat(c_list: Sequence[Any]) -> dict[str, Any]: ...


def encode_model_conds(
    model_function: Callable[..., Any], conds: Any, noise: Tensor, device: Any, prompt_type: str, **kwargs: Any
) -> list[dict[str, Any]]: ...


class KSampler:
    SAMPLERS: ClassVar[list[str]] = ["euler", "dpmpp_2m"]
    SCHEDULERS: ClassVar[list[str]] = ["simple", "normal"]
