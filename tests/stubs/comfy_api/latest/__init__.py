"""What the pack uses of ComfyUI's node API, to be tested and typed where there is no ComfyUI.

Names and parameters are the real ones, and few: what the pack does not use is not here, so that a slip fails.
`tests/host/inside/stub_drift.py` holds them against the real API.
"""

from abc import ABC, abstractmethod

from . import io as io
from . import ui as ui


class ComfyExtension(ABC):
    async def on_load(self) -> None:  # noqa: B027  (as in the host)
        pass

    @abstractmethod
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...
