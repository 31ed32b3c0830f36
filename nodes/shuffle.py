"""How the vectors of an embedding are shuffled in training."""

from typing import get_args

from comfy_api.latest import io

from ..textinv_core import ShuffleConfig
from ..textinv_core.shuffle import MODES, Per
from .types import CATEGORY, ShuffleType, sentence, setting


class TextInvShuffleConfig(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TextInvShuffleConfig",
            display_name="Shuffle Config (Textual Inversion)",
            category=CATEGORY,
            description="Shuffles an embedding's vectors in every training prompt, which is meant to make each one "
            "learn a whole concept rather than a part that leaks into others. Files and previews keep the order.",
            search_aliases=["textual inversion", "vector shuffling"],
            inputs=[
                setting(io.Combo, ShuffleConfig, "mode", options=list(MODES), default="dynamic"),
                setting(io.Combo, ShuffleConfig, "per", options=list(get_args(Per))),
                setting(io.Boolean, ShuffleConfig, "progressive_words"),
                setting(io.Int, ShuffleConfig, "unlock_every", min=1, max=1_000_000),
            ],
            outputs=[ShuffleType.Output("shuffle", tooltip="For the shuffle input of Train Embedding.")],
        )

    @classmethod
    def validate_inputs(cls, mode=None):
        # Naming `mode` switches off the host's check against the list, which knows no aliases such as `on`.
        return mode is None or sentence(lambda text: ShuffleConfig(mode=text), mode)

    @classmethod
    def execute(cls, mode, per, progressive_words, unlock_every) -> io.NodeOutput:
        return io.NodeOutput(ShuffleConfig(mode, per, progressive_words, unlock_every))


NODES = [TextInvShuffleConfig]
