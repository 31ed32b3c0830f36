"""Creating, applying, saving and loading embeddings."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..textinv_core import load_embedding, save_embedding
from ..textinv_core.embedding import check_name
from ..textinv_core.files import numbered
from ..textinv_core.hosts.comfy import ComfyHost
from ..textinv_core.images import save_picture
from ..textinv_core.training.presets import PRESETS
from .types import CATEGORY, EmbeddingType, sentence


class TextInvCreateEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TextInvCreateEmbedding",
            display_name="Create Embedding (Textual Inversion)",
            category=CATEGORY,
            description="Makes a new embedding for a model's text encoders, starting as the words of the init text.",
            search_aliases=["textual inversion", "new embedding"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoders the embedding is for; those of the model to train."),
                io.String.Input(
                    "name",
                    default="my-subject",
                    tooltip="What prompts will call it: embedding:name. Letters, digits, _ and - only.",
                ),
                io.String.Input(
                    "init_text",
                    default="*",
                    tooltip="The words it starts as. A word for the kind of thing in your pictures, such as dog or "
                    "watercolor, gives training a head start. Empty starts from zeros.",
                ),
                io.Int.Input(
                    "vectors",
                    default=PRESETS["subject"]["vectors"],
                    min=0,
                    max=75,
                    tooltip="How many tokens of the prompt it takes up. More hold more detail, and need more "
                    "pictures. 0 makes as many as the init text has tokens.",
                ),
            ],
            outputs=[EmbeddingType.Output("embedding", tooltip="The untrained embedding.")],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return name is None or sentence(check_name, name)  # None: linked, and checked when the graph runs

    @classmethod
    def execute(cls, clip, name, init_text, vectors) -> io.NodeOutput:
        return io.NodeOutput(ComfyHost(clip).create_embedding(name, init_text, vectors))


class TextInvApplyEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TextInvApplyEmbedding",
            display_name="Apply Embedding (Textual Inversion)",
            category=CATEGORY,
            description="Lets every text node fed with this CLIP use the embedding as embedding:name, without a file. "
            "Wins over a file of the same name; several can be chained.",
            search_aliases=["textual inversion", "use embedding"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that is to know the embedding."),
                EmbeddingType.Input("embedding", tooltip="The embedding, made for this kind of model."),
            ],
            outputs=[io.Clip.Output("clip", tooltip="The same CLIP, which now understands embedding:name in prompts.")],
        )

    @classmethod
    def execute(cls, clip, embedding) -> io.NodeOutput:
        return io.NodeOutput(ComfyHost(clip).apply(embedding))


class TextInvSaveEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TextInvSaveEmbedding",
            display_name="Save Embedding (Textual Inversion)",
            category=CATEGORY,
            description="Saves an embedding into the embeddings folder, where every prompt finds it as embedding:name.",
            search_aliases=["textual inversion", "export embedding"],
            is_output_node=True,
            inputs=[
                EmbeddingType.Input("embedding", tooltip="The embedding to save."),
                io.Combo.Input(
                    "format", options=["safetensors"], tooltip="The kind of file. safetensors is read everywhere."
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Replace a file of the same name; otherwise the new one gets the next number. Prompts "
                    "already encoded with the old file stay cached until they change.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="A picture to show for it in the model library; the first one, if there are several.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file is.")],
        )

    @classmethod
    def execute(cls, embedding, format, overwrite, image=None) -> io.NodeOutput:
        folder = Path(folder_paths.get_folder_paths("embeddings")[0])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{embedding.name}.{format}"
        if not overwrite:
            path = numbered(path)
        save_embedding(embedding, path)
        if image is not None:
            save_picture(image[0], path.with_suffix(".preview.png"))
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"Saved as embedding:{path.stem}\n{path}"))


class TextInvLoadEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TextInvLoadEmbedding",
            display_name="Load Embedding (Textual Inversion)",
            category=CATEGORY,
            description="Loads an embedding from the embeddings folder, to train it further or to apply it.",
            search_aliases=["textual inversion"],
            inputs=[
                io.Combo.Input("name", options=_embedding_files(), tooltip="A .safetensors file of that folder."),
            ],
            outputs=[EmbeddingType.Output("embedding", tooltip="The embedding, with the steps it has been trained.")],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        return name is None or name in _embedding_files() or f"There is no embedding {name!r} in the embeddings folder."

    @classmethod
    def fingerprint_inputs(cls, name):
        status = Path(folder_paths.get_full_path_or_raise("embeddings", name)).stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        return io.NodeOutput(load_embedding(Path(folder_paths.get_full_path_or_raise("embeddings", name))))


def _embedding_files() -> list[str]:
    return [name for name in folder_paths.get_filename_list("embeddings") if name.endswith(".safetensors")]


NODES = [TextInvCreateEmbedding, TextInvApplyEmbedding, TextInvSaveEmbedding, TextInvLoadEmbedding]
