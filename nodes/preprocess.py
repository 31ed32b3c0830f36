"""Pictures cut to the size that training wants."""

from comfy_api.latest import io

from ..textinv_core.image_settings import RESIZE_MODES, ImageSettings
from ..textinv_core.images import as_lists, as_pictures, preprocess
from .types import CATEGORY, setting

WIDTH = (
    "Pixels. What the model was made for learns best: 512 for SD1.x, 768 for most SD2.x, 1024 for SDXL; half of it "
    "takes a quarter of the time and loses detail."
)


class TextInvPreprocess(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TextInvPreprocess",
            display_name="Preprocess Images (Textual Inversion)",
            category=CATEGORY,
            description="Brings pictures and their masks to one size, and adds mirrored copies if asked.",
            search_aliases=["resize images", "crop images", "prepare dataset", "flipped copies"],
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="The pictures, of any sizes, as a list or as batches."),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="A caption for each picture, or one for all. Without any, captions are empty.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="A mask for each picture, or one for all: white is learnt, black is not. Masks of "
                    "Load Image are the other way round; put an Invert Mask between.",
                ),
                # No model is connected, whose own size could be taken.
                setting(io.Int, ImageSettings, "width", default=512, min=64, max=8192, step=8, tooltip=WIDTH),
                setting(io.Int, ImageSettings, "height", default=512, min=64, max=8192, step=8),
                setting(io.Combo, ImageSettings, "resize", options=list(RESIZE_MODES)),
                setting(io.Boolean, ImageSettings, "flip"),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The pictures in their new size."),
                io.String.Output("captions", is_output_list=True, tooltip="The caption of each picture."),
                io.Mask.Output("masks", is_output_list=True, tooltip="The mask of each picture, cut like the picture."),
            ],
        )

    @classmethod
    def execute(cls, images, width, height, resize, flip, captions=None, masks=None) -> io.NodeOutput:
        # As the node takes lists, single values come as lists of one.
        pictures = as_pictures(images, captions, masks)
        images, captions, masks, _ = as_lists(preprocess(pictures, width[0], height[0], resize[0], flip[0]))
        return io.NodeOutput(images, captions, masks)


NODES = [TextInvPreprocess]
