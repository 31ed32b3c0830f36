import pytest
import torch

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.errors import UserError
from textinv_core.formats.limits import MAX_FILE_BYTES
from textinv_core.formats.pickles import load


@pytest.mark.parametrize(
    ("widths", "stored"),
    [
        ({"clip_l": 768}, {"<cat>"}),
        ({"clip_g": 1280}, {"<cat>"}),
        ({"t5xxl": 4096}, {"<cat>"}),
        ({"clip_l": 96}, {"clip_l"}),  # nothing else in the file would say so
        ({"llama": 4096}, {"llama"}),  # by its width it would be T5
        ({"clip_l": 768, "clip_g": 1280}, {"clip_l", "clip_g"}),
    ],
)
def test_keys(tmp_path, widths, stored):
    path = tmp_path / "my_file.bin"
    vectors = {key: torch.randn(2, width) for key, width in widths.items()}
    save_embedding(Embedding("cat", vectors, 7, {"textinv.base_model": "abc"}), path)
    assert load(path, MAX_FILE_BYTES).keys() == stored
    after = load_embedding(path)
    assert (after.name, after.step, after.metadata) == ("my_file", None, {})
    assert all(torch.equal(after.vectors[key], vectors[key]) for key in vectors)


def test_an_encoder_nobody_knows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'cat.bin' cannot be written.*for to_come"):
        save_embedding(Embedding("cat", {"to_come": torch.ones(1, 768)}), tmp_path / "cat.bin")
    assert not list(tmp_path.iterdir())


def test_reads_what_diffusers_wrote(tmp_path):
    torch.save({"<cat-toy>": torch.ones(768, dtype=torch.float16)}, tmp_path / "learned_embeds.bin")
    after = load_embedding(tmp_path / "learned_embeds.bin")
    assert (after.name, after.step) == ("learned_embeds", None)
    assert torch.equal(after.vectors["clip_l"], torch.ones(1, 768))
