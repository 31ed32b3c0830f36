"""What other packs hang into a model."""

from typing import Any


def copy_nested_dicts(input_dict: dict[Any, Any]) -> dict[Any, Any]: ...
