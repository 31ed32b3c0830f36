"""textinv: train textual-inversion embeddings in ComfyUI graphs, on the models already loaded."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
