"""The text encoders of the CLIP kind and their tokenizers."""

from typing import Any

import torch


class SDClipModel(torch.nn.Module):
    transformer: Any

    def encode(self, tokens: list[list[Any]]) -> tuple[Any, ...]: ...

    def set_clip_options(self, options: dict[str, Any]) -> None: ...

    def reset_clip_options(self) -> None: ...


class SDTokenizer:
    embedding_directory: Any
    embedding_key: str
    _try_get_embedding: Any

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False) -> list[list[tuple[Any, ...]]]: ...
