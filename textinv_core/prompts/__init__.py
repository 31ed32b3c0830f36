"""What an image is trained under: its words, a template's lines, and how ComfyUI reads the prompt the two make."""

from .captions import filename_words, filewords, sidecar_caption
from .syntax import EMBEDDING, embeddings_named, is_number, names_embedding, pieces, read_name
from .templates import TEMPLATES, render, template_lines

__all__ = [
    "EMBEDDING",
    "TEMPLATES",
    "embeddings_named",
    "filename_words",
    "filewords",
    "is_number",
    "names_embedding",
    "pieces",
    "read_name",
    "render",
    "sidecar_caption",
    "template_lines",
]
