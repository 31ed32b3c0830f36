"""What other packs hang into a model."""

from typing import Any


def merge_nested_dicts(dict1: dict[Any, Any], dict2: dict[Any, Any]) -> dict[Any, Any]: ...


class WrappersMP:
    DIFFUSION_MODEL: str = "diffusion_model"
