"""Pictures and captions from a folder of the host's input directory."""

from functools import partial

import folder_paths
from comfy_api.latest import io

from ..textinv_core.image_settings import CAPTIONS, ImageSettings
from ..textinv_core.images import as_lists, contained_folder, folder_fingerprint, list_subfolders, load_folder
from .types import CATEGORY, sentence, setting


class TextInvLoadImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TextInvLoadImages",
            display_name="Load Images (Textual Inversion)",
            category=CATEGORY,
            description="Loads the pictures of a folder with their captions, masks and names, as lists.",
            search_aliases=["load folder", "load dataset", "image folder", "training images", "load captions"],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[".", *list_subfolders(folder_paths.get_input_directory())],
                    default=".",
                    tooltip="The folder to load, below ComfyUI's input folder; '.' is the input folder itself.",
                ),
                setting(io.Boolean, ImageSettings, "recursive"),
                setting(io.Combo, ImageSettings, "captions", options=list(CAPTIONS)),
                setting(io.String, ImageSettings, "filename_word_regex", advanced=True),
                setting(io.String, ImageSettings, "filename_join_string", advanced=True),
                io.String.Input(
                    "folder_text",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="The folder as text, below ComfyUI's input folder; wins over the list unless it is empty.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The pictures, each in its own size."),
                io.String.Output("captions", is_output_list=True, tooltip="The caption of each picture."),
                io.Mask.Output(
                    "masks",
                    is_output_list=True,
                    tooltip="The alpha of each picture: white where it is opaque and to be learnt.",
                ),
                io.String.Output(
                    "names", is_output_list=True, tooltip="The file name of each picture, without its extension."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder=".", folder_text=""):
        # Naming `folder` here also switches off the host's check against the list, which knows no new folders.
        if folder is None or folder_text is None:  # linked: known when the graph runs, and checked then
            return True
        return sentence(partial(contained_folder, folder_paths.get_input_directory()), _chosen(folder, folder_text))

    @classmethod
    def fingerprint_inputs(cls, folder, recursive, folder_text="", **kwargs):
        root = folder_paths.get_input_directory()
        if folder is None or recursive is None or folder_text is None:  # linked: could be any folder
            return folder_fingerprint(root, ".", recursive=True)
        return folder_fingerprint(root, _chosen(folder, folder_text), recursive)

    @classmethod
    def execute(
        cls, folder, recursive, captions, filename_word_regex, filename_join_string, folder_text=""
    ) -> io.NodeOutput:
        loaded = load_folder(
            folder_paths.get_input_directory(),
            _chosen(folder, folder_text),
            recursive,
            captions,
            filename_word_regex or None,
            filename_join_string,
        )
        return io.NodeOutput(*as_lists([*loaded]))


def _chosen(folder: str, folder_text: str) -> str:
    """The folder that is written, else the one of the list, as it stands: spaces may belong to a name."""
    return folder_text if folder_text.strip() else folder


NODES = [TextInvLoadImages]
