"""The pack's own socket types."""

from comfy_api.latest import io

EmbeddingType = io.Custom("TEXTINV_EMBEDDING")
ShuffleType = io.Custom("TEXTINV_SHUFFLE")
LossMapType = io.Custom("LOSS_MAP")  # the host's, which has no class for it

CATEGORY = "training/textual inversion"
