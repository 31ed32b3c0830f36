"""What a page, or a script, may ask the server of a node that is at work."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web
from server import PromptServer

MOST_BYTES = 1000  # of a question

# Node id -> what ends its training after the step in progress. Nodes write it in the thread that graphs run in, the
# server reads it in its own; each is one operation on the dictionary.
_trainings: dict[str | None, Callable[[], None]] = {}


@contextmanager
def finishable(node: str | None, finish: Callable[[], None]) -> Iterator[None]:
    """For the length of the block, `POST /textinv/finish` calls `finish` for the node with this id; it is called in
    the server's thread."""
    _trainings[node] = finish
    try:
        yield
    finally:
        del _trainings[node]


def add_routes() -> None:
    """Make the running server answer at these addresses."""
    PromptServer.instance.routes.post("/textinv/finish")(finish)


async def finish(request: web.Request) -> web.Response:
    """End the training of a node, `{"node": "<its id>"}`, after the step in progress; its graph goes on with what was
    learnt.

    200 where it is asked to; 404 where that node does not train now. What another site's page could send in the name
    of the person is refused: 415 for anything but JSON, which a browser asks about first, and 403 for its origin.
    """
    if not _is_own(request):
        return _answer(403, "Only ComfyUI's own page, and programs that are no browser, may ask this.")
    if request.content_type != "application/json":
        return _answer(415, 'Send JSON: the header Content-Type: application/json, and {"node": "<id>"}.')
    if request.content_length is None or request.content_length > MOST_BYTES:
        return _answer(413, f"Send at most {MOST_BYTES} bytes, and say how many with Content-Length.")
    try:
        asked = json.loads(await request.read())
        node = str(asked["node"])  # ids look like numbers
    except (ValueError, TypeError, KeyError, RecursionError):
        return _answer(400, 'Send {"node": "<id>"}, with the id of the node that trains.')
    end = _trainings.get(node)
    if end is None:
        return _answer(404, f"The node {node[:100]!r} is not training now; nothing was finished.")
    end()
    return _answer(200, f"The training of node {node} ends after this step, and the graph goes on.")


def _is_own(request: web.Request) -> bool:
    """Whether it comes from a page of this very server, or from no page at all."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    if site is not None:  # what browsers say themselves; no page can
        return site in ("same-origin", "none")
    own = request.host.lower()
    return origin is None or origin.lower() in (f"http://{own}", f"https://{own}")


def _answer(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text)
