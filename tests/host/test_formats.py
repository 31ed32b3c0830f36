"""Embedding files as the host's own loader reads them."""

import torch
from safetensors.torch import save_file

from textinv_core import Embedding, save_embedding

WIDTHS = {"clip_l": 768, "clip_g": 1280, "clip_h": 1024, "t5xxl": 4096, "llama": 4096}
TOGETHER = [["clip_l"], ["clip_g"], ["clip_h"], ["llama"], ["clip_l", "clip_g"], ["clip_g", "clip_l", "t5xxl"]]


def test_the_host_finds_the_vectors_in_every_kind_of_file(inside, tmp_path):
    vectors = {key: torch.randn(3, width) for key, width in WIDTHS.items()}
    save_file(vectors, tmp_path / "expected.safetensors")
    for keys in TOGETHER:
        embedding = Embedding("cat", {key: vectors[key] for key in keys}, 7, {"textinv.base_model": "abc"})
        for suffix in (".safetensors", ".pt", ".bin"):
            save_embedding(embedding, tmp_path / f"{'+'.join(keys)}{suffix}")
    assert inside("formats.py", tmp_path) == {"files": 18, "wrong": []}
