"""The server that graphs run on."""


class PromptServer:
    instance: "PromptServer"

    def send_progress_text(
        self, text: bytes | bytearray | str, node_id: str | None, sid: str | None = None
    ) -> None: ...
