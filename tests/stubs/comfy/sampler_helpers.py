"""Conditioning as samplers take it."""

from typing import Any


def convert_cond(cond: Any) -> list[dict[str, Any]]: ...
