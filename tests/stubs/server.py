"""The server that graphs run on."""

from aiohttp import web


class PromptServer:
    instance: "PromptServer"
    routes: web.RouteTableDef

    def send_progress_text(
        self, text: bytes | bytearray | str, node_id: str | None, sid: str | None = None
    ) -> None: ...


PromptServer.instance = PromptServer()
PromptServer.instance.routes = web.RouteTableDef()
