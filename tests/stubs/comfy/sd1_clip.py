"""The text encoders of the CLIP kind and their tokenizers."""

from typing import Any

import torch


class SDClipModel(torch.nn.Module):
    transformer: Any


class SDTokenizer:
    embedding_directory: Any
    embedding_key: str
    _try_get_embedding: Any

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False) -> list[list[tuple[Any, ...]]]: ...
