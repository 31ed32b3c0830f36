"""Pictures and captions from a folder of the host's input directory."""

from functools import partial

import folder_paths
from comfy_api.latest import io

from ..textinv_core.images import CAPTIONS, contained_folder, folder_fingerprint, list_subfolders, load_folder
from .types import CATEGORY, sentence


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
                io.Boolean.Input(
                    "recursive",
                    default=False,
                    tooltip="Also load the pictures of all folders inside the folder.",
                ),
                io.Combo.Input(
                    "captions",
                    options=list(CAPTIONS),
                    default="auto",
                    tooltip="Where captions come from: the .txt file of the same name beside the picture (sidecar), "
                    "the words of the file name (filename), the first of these there is (auto), or nowhere (none).",
                ),
                io.String.Input(
                    "filename_word_regex",
                    default="",
                    advanced=True,
                    tooltip="A regular expression that finds the words in a file name, such as [a-z]+. "
                    "Empty takes the name as it is, without leading digits and dashes.",
                ),
                io.String.Input(
                    "filename_join_string",
                    default=" ",
                    advanced=True,
                    tooltip="What is put between the words that the regular expression finds.",
                ),
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
        return sentence(partial(contained_folder, folder_paths.get_input_directory()), folder_text.strip() or folder)

    @classmethod
    def fingerprint_inputs(cls, folder, recursive, folder_text="", **kwargs):
        root = folder_paths.get_input_directory()
        if folder is None or recursive is None or folder_text is None:  # linked: could be any folder
            return folder_fingerprint(root, ".", recursive=True)
        return folder_fingerprint(root, folder_text.strip() or folder, recursive)

    @classmethod
    def execute(
        cls, folder, recursive, captions, filename_word_regex, filename_join_string, folder_text=""
    ) -> io.NodeOutput:
        loaded = load_folder(
            folder_paths.get_input_directory(),
            folder_text.strip() or folder,
            recursive,
            captions,
            filename_word_regex or None,
            filename_join_string,
        )
        return io.NodeOutput(
            [image[None] for image in loaded.images],
            loaded.captions,
            [mask[None] for mask in loaded.masks],
            loaded.names,
        )


NODES = [TextInvLoadImages]
