"""The progress bar of the page."""

from typing import Any


class ProgressBar:
    def __init__(self, total: int, node_id: str | None = None): ...

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None: ...

    def update(self, value: int) -> None: ...
