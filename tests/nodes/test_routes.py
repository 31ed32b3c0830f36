"""Finishing a node's training from outside; against the real server in tests/host/test_train_node.py."""

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest


@dataclass
class Asked:
    """A request as aiohttp gives it."""

    body: bytes = b'{"node": "4"}'
    headers: dict[str, str] = field(default_factory=dict)
    host: str = "localhost:8188"
    content_type: str = "application/json"
    length: int | None = -1

    @property
    def content_length(self):
        return len(self.body) if self.length == -1 else self.length

    async def read(self):
        return self.body


@pytest.fixture
def routes(pack):
    from textinv_pack.nodes import routes

    return routes


def test_the_server_is_given_the_route_when_the_pack_is_loaded(pack, monkeypatch):
    import server
    from aiohttp import web

    page = SimpleNamespace(routes=web.RouteTableDef())
    monkeypatch.setattr(server.PromptServer, "instance", page)
    asyncio.run(asyncio.run(pack.comfy_entrypoint()).on_load())
    assert [*page.routes.posts] == ["/textinv/finish"]


def test_the_training_of_the_node_that_is_named_finishes(routes):
    did = []
    with routes.finishable("4", lambda: did.append("4")), routes.finishable("5", lambda: did.append("5")):
        answer = asyncio.run(routes.finish(Asked()))
    assert (answer.status, did) == (200, ["4"]) and "node 4" in answer.text
    assert asyncio.run(routes.finish(Asked())).status == 404


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (Asked(headers={"Origin": "http://localhost:8188", "Sec-Fetch-Site": "same-origin"}), 200),
        (Asked(headers={"Origin": "https://LOCALHOST:8188"}), 200),
        (Asked(headers={"Origin": "http://proxy.example", "Sec-Fetch-Site": "same-origin"}), 200),
        (Asked(headers={"Origin": "http://localhost:8188", "Sec-Fetch-Site": "cross-site"}), 403),
        (Asked(headers={"Origin": "http://localhost:8188", "Sec-Fetch-Site": "same-site"}), 403),
        (Asked(headers={"Origin": "http://localhost:3000"}), 403),
        (Asked(headers={"Origin": "http://evil.example"}), 403),
        (Asked(headers={"Origin": "null"}), 403),
        (Asked(content_type="text/plain"), 415),
        (Asked(length=None), 413),
        (Asked(json.dumps({"node": "4", "more": "x" * 1000}).encode()), 413),
        (Asked(b"node=4"), 400),
        (Asked(b"\xff"), 400),
        (Asked(b'["node"]'), 400),
        (Asked(b"{}"), 400),
        (Asked(b"[" * 1000), 400),
        (Asked(b'{"node": "5"}'), 404),
        (Asked(b'{"node": 4}'), 200),
        (Asked(b'{"node": 5}'), 404),
        (Asked(b'{"node": ["4"]}'), 404),
        (Asked(b'{"node": null}'), 404),
    ],
)
def test_who_may_ask_and_how(routes, asked, status):
    did = []
    with routes.finishable("4", lambda: did.append("4")):
        answer = asyncio.run(routes.finish(asked))
    assert (answer.status, did) == (status, ["4"] if status == 200 else []) and answer.text.endswith(".")


def test_a_training_that_fails_is_forgotten(routes):
    with pytest.raises(ZeroDivisionError), routes.finishable("4", lambda: None):
        raise ZeroDivisionError
    assert asyncio.run(routes.finish(Asked())).status == 404
