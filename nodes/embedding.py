"""Creating, applying, saving and loading embeddings."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from server import PromptServer
from torch import Tensor

from ..textinv_core import load_embedding, save_embedding
from ..textinv_core.embedding import UNREAD, Embedding, check_name, safe_name, unread_text
from ..textinv_core.errors import UserError
from ..textinv_core.files import numbered
from ..textinv_core.formats import keeps_facts
from ..textinv_core.hosts.comfy import ComfyHost
from ..textinv_core.hosts.comfy_vision import comparable_encoder, image_embeds, pooled_text
from ..textinv_core.images import save_picture, split_batches
from ..textinv_core.training.presets import PRESETS
from ..textinv_core.training.warm_start import STEPS, warm_start
from .embedding_files import FOUND_BY_PROMPTS, entries, find
from .types import CATEGORY, EmbeddingType, sentence

log = logging.getLogger("textinv")

FILE_KINDS = ("safetensors", "pt", "bin", "png")
CREATED_FROM = ("clip", "name", "init_text", "vectors")
NEEDS_IMAGE = "A png needs a picture to keep the embedding in: connect one to `image`, or choose another format."


class TextInvCreateEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TextInvCreateEmbedding",
            display_name="Create Embedding (Textual Inversion)",
            category=CATEGORY,
            description="Makes a new embedding for a model's text encoders, starting as the words of the init text; "
            "with a CLIP vision model connected, turned to where your pictures are.",
            search_aliases=["textual inversion", "new embedding", "warm start"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
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
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="A CLIP vision model, to bring the embedding near your images before any training: "
                    "CLIP-ViT-bigG-14 for SDXL, CLIP-ViT-H-14 for SD2.x. There is none for SD1.x checkpoints.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="The pictures that clip_vision looks at: those you will train on."
                ),
            ],
            outputs=[
                EmbeddingType.Output("embedding", is_output_list=True, tooltip="The untrained embedding."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name=None, clip_vision=None, images=None):
        # Lists of one, as the node takes lists; of None or nothing where linked, which is checked when the graph runs.
        named = not name or name[0] is None or sentence(check_name, name[0])
        return named if named is not True else sentence(_check_both, (clip_vision is not None, images is not None))

    @classmethod
    def execute(cls, clip_vision=None, images=None, **inputs) -> io.NodeOutput:
        _check_both((clip_vision is not None, images is not None))
        pictures = split_batches(images or [])
        if clip_vision is not None and not (clip_vision and pictures):
            what, empty = ("pictures", "images") if clip_vision else ("model", "clip_vision")
            raise UserError(
                f"{empty} is empty: the node connected to it gave no {what}. See to that node, or disconnect "
                "clip_vision and images."
            )
        made = []
        # It takes lists so that all pictures come at once. Of the others it makes an embedding each, as the host would:
        # those that have run out give their last again.
        for number in range(max(map(len, inputs.values()))):
            clip, *given = (inputs[key][min(number, len(inputs[key]) - 1)] for key in CREATED_FROM)
            host = ComfyHost(clip)
            embedding = host.create_embedding(*given)
            about = host.about_encoders()
            log.info(f"textinv: {given[0]}: {about}")
            PromptServer.instance.send_progress_text(about, cls.hidden.unique_id)  # shown on the node
            made.append(_near(pictures, embedding, clip, clip_vision[0]) if clip_vision else embedding)
        return io.NodeOutput(made)


def _check_both(connected: tuple[bool, bool]) -> None:
    if connected[0] != connected[1]:
        there, missing = ("clip_vision", "images") if connected[0] else ("images", "clip_vision")
        raise UserError(
            f"{there} alone does nothing: connect {missing} too, to start near your pictures, or disconnect {there}."
        )


def _near(pictures: Sequence[Tensor], embedding: Embedding, clip: Any, clip_vision: Any) -> Embedding:
    """`embedding`, turned to where the vision model sees the pictures."""
    key = comparable_encoder(clip, clip_vision)
    seen = image_embeds(clip_vision, pictures)
    bar = comfy.utils.ProgressBar(STEPS)
    with pooled_text(clip, key) as pooled:
        return warm_start(embedding, key, seen, pooled, partial(bar.update, 1))


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
            description="Saves an embedding into the embeddings folder, where every prompt finds it as embedding:name; "
            "or in a picture, as A1111 shares them.",
            search_aliases=["textual inversion", "export embedding"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                EmbeddingType.Input("embedding", tooltip="The embedding to save."),
                io.Combo.Input(
                    "format",
                    options=list(FILE_KINDS),
                    tooltip="The kind of file. safetensors is read everywhere; pt is A1111's; bin is for older "
                    "diffusers and keeps no steps; png puts it into the image, for Load Embedding and A1111, not for "
                    "prompts.",
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
                    tooltip="A picture to show for it in the model library, or with png the one to put it into; the "
                    "first one, if there are several.",
                ),
            ],
            outputs=[io.String.Output("path", tooltip="Where the file is.")],
        )

    @classmethod
    def validate_inputs(cls, format=None, image=False):
        # Naming `format` here switches off the host's check against the list. What is linked is None.
        return format is None or sentence(lambda kind: _check_format(kind, image is not False), format)

    @classmethod
    def execute(cls, embedding, format, overwrite, image=None) -> io.NodeOutput:
        _check_format(format, image is not None)  # it may have been linked
        folder = Path(folder_paths.get_folder_paths("embeddings")[0])
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{embedding.name}.{format}"
        if not overwrite:
            # Of two files that prompts know by one name they would find only one.
            path = numbered(path, FOUND_BY_PROMPTS if path.suffix in FOUND_BY_PROMPTS else ())
        picture = None if image is None else image[0, ..., :3]
        save_embedding(replace(embedding, name=safe_name(path.stem)), path, picture)
        if picture is not None and format != "png":
            save_picture(picture, path.with_suffix(".preview.png"))
        how_to_use = _how_to_use(embedding, path)
        PromptServer.instance.send_progress_text(how_to_use, cls.hidden.unique_id)  # shown on the node
        return io.NodeOutput(str(path), ui=ui.PreviewText(how_to_use))  # kept in the history


def _check_format(format: str, has_image: bool) -> None:
    if format not in FILE_KINDS:
        raise UserError(f"There is no format {format!r}: choose one of {', '.join(FILE_KINDS)}.")
    if format == "png" and not has_image:
        raise UserError(NEEDS_IMAGE)


def _how_to_use(embedding: Embedding, path: Path) -> str:
    """What the node says of the file it wrote: how to use it, what is not in it, and where it is."""
    if path.suffix in FOUND_BY_PROMPTS:
        said = [f"Saved as embedding:{path.stem}"]
        found = next(file for suffix in FOUND_BY_PROMPTS if (file := path.with_suffix(suffix)).exists())
        if found != path:
            said.append(f"Prompts find {found.name} instead, as long as it is there.")
        if unread := embedding.metadata.get(UNREAD):
            said[0] = f"Saved for Load Embedding. {unread_text(unread)}"
    else:
        said = ["Saved in a picture: for Load Embedding and A1111. Prompts do not find it."]
    if not keeps_facts(embedding, path) and (embedding.step is not None or embedding.metadata):
        said.append("Steps and model are not in this kind of file; safetensors has them.")
    return "\n".join([*said, str(path)])


class TextInvLoadEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TextInvLoadEmbedding",
            display_name="Load Embedding (Textual Inversion)",
            category=CATEGORY,
            description="Loads an embedding from a file or picture in the embeddings folder, or from inside a LoRA, to "
            "train it further or to apply it.",
            search_aliases=["textual inversion"],
            inputs=[
                # No `io.RemoteOptions`: of a saved workflow the page would replace the choice by the first of the list.
                io.Combo.Input(
                    "name",
                    options=entries(),
                    tooltip="A file or picture of that folder, or, as lora: file > name, one that a LoRA brings along. "
                    "Press R for new ones.",
                ),
            ],
            outputs=[EmbeddingType.Output("embedding", tooltip="The embedding, with the steps it has been trained.")],
        )

    @classmethod
    def validate_inputs(cls, name=None):
        # Naming `name` here also switches off the host's check against the list, which knows no new files.
        return name is None or sentence(find, name)  # None: linked, and checked when the graph runs

    @classmethod
    def fingerprint_inputs(cls, name):
        if name is None:  # linked: could be any file, and is looked for when the graph runs
            return ""
        path, _ = find(name)
        status = path.stat()
        return f"{status.st_mtime_ns} {status.st_size}"

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        return io.NodeOutput(load_embedding(*find(name)))


NODES = [TextInvCreateEmbedding, TextInvApplyEmbedding, TextInvSaveEmbedding, TextInvLoadEmbedding]
