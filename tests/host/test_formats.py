"""Embedding files as the host's own loader reads them."""

import torch
from safetensors.torch import save_file

from textinv_core import Embedding, load_embedding, save_embedding

WIDTHS = {"clip_l": 768, "clip_g": 1280, "clip_h": 1024, "t5xxl": 4096, "llama": 4096}
ALONE = [["clip_l"], ["clip_g"], ["clip_h"], ["llama"], ["t5xxl"]]
TOGETHER = [["clip_l", "clip_g"], ["clip_l", "t5xxl"], ["clip_g", "clip_l", "t5xxl"]]


def test_the_host_finds_the_vectors_in_every_kind_of_file(inside, tmp_path):
    vectors = {key: torch.randn(3, width) for key, width in WIDTHS.items()}
    save_file(vectors, tmp_path / "expected.safetensors")
    for keys in ALONE + TOGETHER:
        embedding = Embedding("cat", {key: vectors[key] for key in keys}, 7, {"textinv.base_model": "abc"})
        for suffix in (".safetensors", ".pt", ".bin"):
            save_embedding(embedding, tmp_path / f"{'+'.join(keys)}{suffix}")
    # And what OneTrainer made, once it was loaded and saved: of its own file, where T5 is `t5`, the host finds nothing.
    save_file({"clip_l": vectors["clip_l"], "t5": vectors["t5xxl"]}, tmp_path / "t5xxl+clip_l.safetensors")
    save_embedding(load_embedding(tmp_path / "t5xxl+clip_l.safetensors"), tmp_path / "t5xxl+clip_l.safetensors")
    assert inside("formats.py", tmp_path) == {"files": 25, "wrong": []}
