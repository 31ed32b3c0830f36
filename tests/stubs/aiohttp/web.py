"""What a route is given, and answers with."""

from collections.abc import Callable, Mapping
from typing import Any


class Request:
    headers: Mapping[str, str]
    host: str
    content_type: str
    content_length: int | None

    async def read(self) -> bytes: ...  # type: ignore[return]


class Response:
    status: int
    text: str | None

    def __init__(self, *, status: int = 200, text: str | None = None):
        self.status, self.text = status, text


class RouteTableDef:
    def __init__(self):
        self.posts: dict[str, Callable[..., Any]] = {}

    def post(self, path: str) -> Callable[[Any], Any]:
        return lambda handler: self.posts.setdefault(path, handler)
