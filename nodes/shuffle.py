"""How the vectors of an embedding are shuffled in training."""

from typing import get_args

from comfy_api.latest import io

from ..textinv_core import ShuffleConfig
from ..textinv_core.shuffle import MODES, Per
from .types import CATEGORY, ShuffleType, sentence


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
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="dynamic",
                    tooltip="Which vectors change places: all; trailing (all but the first); leading (all but the "
                    "last); between (all but the first and last); progressive (between, with a fixed last vector "
                    "while vectors are unlocked); dynamic (the best of these for the number of vectors); off.",
                ),
                io.Combo.Input(
                    "per",
                    options=list(get_args(Per)),
                    default="sample",
                    tooltip="How often a new order is drawn: for each picture's prompt, for each place in a prompt "
                    "that names the embedding, or once for the whole batch.",
                ),
                io.Boolean.Input(
                    "progressive_words",
                    default=False,
                    tooltip="Start training with one vector and unlock the others one by one.",
                ),
                io.Int.Input(
                    "unlock_every",
                    default=2000,
                    min=1,
                    max=1_000_000,
                    tooltip="With progressive words: after how many steps the next vector is unlocked.",
                ),
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
