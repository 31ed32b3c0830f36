"""Embeddings inside LoRA files, keyed as A1111 reads and OneTrainer writes them."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from textinv_core import load_embedding
from textinv_core.errors import UserError
from textinv_core.formats import bundles, list_bundled

WEIGHTS = {f"lora_unet_block_{i}.lora_{part}.weight": torch.rand(4, 4) for i in range(3) for part in ("up", "down")}
CAT = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
DOG = torch.randn(3, 768)
TWO = {**{f"bundle_emb.<cat>.{key}": CAT[key] for key in CAT}, "bundle_emb.dog.string_to_param.*": DOG}


@pytest.fixture
def save(tmp_path):
    def save(tensors, facts=None):
        save_file(WEIGHTS | tensors, tmp_path / "style.safetensors", facts)
        return tmp_path / "style.safetensors"

    return save


def test_names_are_listed_and_each_can_be_loaded(save):
    path = save(TWO, {"modelspec.author": "of the LoRA", "textinv.step": "7"})
    assert list_bundled(path) == ["<cat>", "dog"]
    cat, dog = (load_embedding(path, name) for name in list_bundled(path))
    assert (cat.name, cat.step, cat.metadata) == ("cat", None, {})
    assert cat.vectors.keys() == CAT.keys()
    assert all(torch.equal(cat.vectors[key], CAT[key]) for key in CAT)
    assert dog.vectors.keys() == {"clip_l"} and torch.equal(dog.vectors["clip_l"], DOG)


def test_one_needs_no_name(save):
    assert torch.equal(load_embedding(save({"bundle_emb.dog.emb_params": DOG})).vectors["clip_l"], DOG)


def test_of_several_one_is_to_be_chosen(save):
    with pytest.raises(UserError, match=r"'style.safetensors' holds 2 embeddings, '<cat>', 'dog': choose one"):
        load_embedding(save(TWO))
    with pytest.raises(UserError, match=r"'style.safetensors' holds no embedding 'cow', but '<cat>', 'dog'\."):
        load_embedding(save(TWO), "cow")


def test_a_name_may_have_dots(save):
    path = save({"bundle_emb.v1.5 cat.clip_l": DOG, "bundle_emb.v1.5 cat.string_to_param.*": DOG.clone()})
    assert list_bundled(path) == ["v1.5 cat"]


def test_of_onetrainer_what_goes_in_before_the_encoder_is_taken(save, caplog):
    t5 = torch.randn(2, 4096)
    path = save({"bundle_emb.cat.t5": t5, "bundle_emb.cat.t5_out": t5 + 1, "bundle_emb.cat.clip_l": DOG})
    vectors = load_embedding(path).vectors
    assert vectors.keys() == {"t5xxl", "clip_l"} and torch.equal(vectors["t5xxl"], t5)
    assert "'style.safetensors' is read without t5_out: vectors that OneTrainer puts in after" in caplog.text


def test_a_lora_may_be_larger_than_any_embedding(save, monkeypatch):
    path = save(TWO)
    dog = 4 * load_embedding(path, "dog").vectors["clip_l"].numel()
    monkeypatch.setattr("textinv_core.formats.safetensors.MAX_TENSOR_BYTES", dog)
    assert load_embedding(path, "dog").name == "dog"
    monkeypatch.setattr("textinv_core.formats.safetensors.MAX_TENSOR_BYTES", dog - 4)
    with pytest.raises(UserError, match="would take"):
        load_embedding(path, "dog")


def test_weights_are_never_read(save):
    path = save(TWO)
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    begin, end = header["lora_unet_block_0.lora_up.weight"]["data_offsets"]
    data[start + begin : start + end] = b"\xff" * (end - begin)  # not finite, were it looked at
    path.write_bytes(data)
    assert load_embedding(path, "dog").name == "dog"


def test_only_the_header_is_read_to_list_names(save, monkeypatch):
    path = save(TWO)
    path.write_bytes(path.read_bytes()[:-1000])
    assert list_bundled(path) == ["<cat>", "dog"]
    monkeypatch.setattr(bundles, "MAX_HEADER_BYTES", 50)
    assert list_bundled(path) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        struct.pack("<Q", 23) + b'["bundle_emb.a.b", 3, 4]'[:23],
        struct.pack("<Q", 20) + b'["bundle_emb.a.b",3]',
        struct.pack("<Q", 10**6) + b'"bundle_emb.' + b"[" * (10**6 - 12),
        b"\2\0\0\0\0\0\0\0{}",
        struct.pack("<Q", 99) + b'{"bundle_emb.',
        struct.pack("<Q", 13) + b'"bundle_emb."',
    ],
)
def test_other_files_have_none(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    assert list_bundled(tmp_path / "x.safetensors") == []


def test_an_ordinary_file_has_none_and_goes_by_its_own_name(tmp_path):
    save_file({"emb_params": DOG}, tmp_path / "cat.safetensors")
    assert list_bundled(tmp_path / "cat.safetensors") == list_bundled(tmp_path / "cat.pt") == []
    assert load_embedding(tmp_path / "cat.safetensors", "cat").name == "cat"
    with pytest.raises(UserError, match=r"'cat.safetensors' holds no embedding 'dog', but 'cat'\."):
        load_embedding(tmp_path / "cat.safetensors", "dog")


def test_bundled_names_do_nothing_to_a_terminal(save):
    with pytest.raises(UserError) as error:
        load_embedding(save({f"bundle_emb.\x1b[31m{i}.clip_l": DOG + i for i in range(40)}))
    assert str(error.value).isprintable() and len(str(error.value)) < 500
