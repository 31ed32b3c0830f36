"""What nodes show below themselves on the page."""

from typing import Any

from torch import Tensor


class PreviewText:
    def __init__(self, value: str):
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        return {"text": (self.value,)}


class PreviewImage:
    def __init__(self, image: Tensor, animated: bool = False, cls: type | None = None):
        self.image = image
        self.animated = animated

    def as_dict(self) -> dict[str, Any]:
        return {"images": [], "animated": (self.animated,)}
