"""The nodes of the pack, one file a theme; each file lists its own in `NODES`."""

from comfy_api.latest import ComfyExtension, io

from . import embedding, load_images, preprocess, shuffle, train
from .routes import add_routes

THEMES = (load_images, preprocess, embedding, shuffle, train)


class TextInvExtension(ComfyExtension):
    async def on_load(self) -> None:
        add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for theme in THEMES for node in theme.NODES]


async def comfy_entrypoint() -> TextInvExtension:
    return TextInvExtension()
