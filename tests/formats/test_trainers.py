"""Embedding files of Flux, SD3 and SDXL with the keys that OneTrainer and diffusers write, and those they look for."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.errors import UserError
from textinv_core.formats import list_bundled

FLUX = {"clip_l": torch.randn(2, 768), "t5xxl": torch.randn(2, 4096)}
SD3 = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280), "t5xxl": torch.randn(2, 4096)}
SDXL = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
CHROMA = {"t5xxl": torch.randn(2, 4096)}
HIDREAM = SD3 | {"llama": torch.randn(2, 4096)}
FAMILIES = pytest.mark.parametrize("vectors", [FLUX, SD3, SDXL, CHROMA, HIDREAM], ids="+".join)


def theirs(vectors):
    """As OneTrainer keeps them, and diffusers' advanced trainings of SDXL and Flux."""
    return {"t5" if key == "t5xxl" else key: rows for key, rows in vectors.items()}


def equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[key], others[key]) for key in some)


@FAMILIES
def test_their_files_are_read(tmp_path, vectors):
    save_file(theirs(vectors), tmp_path / "cat.safetensors")
    assert equal(load_embedding(tmp_path / "cat.safetensors").vectors, vectors)
    torch.save(theirs(vectors), tmp_path / "cat.pt")
    assert equal(load_embedding(tmp_path / "cat.pt").vectors, vectors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_their_files_may_be_of_half_precision(tmp_path, dtype):
    save_file({key: rows.to(dtype) for key, rows in theirs(FLUX).items()}, tmp_path / "cat.safetensors")
    expected = {key: rows.to(dtype).float() for key, rows in FLUX.items()}
    assert equal(load_embedding(tmp_path / "cat.safetensors").vectors, expected)


@FAMILIES
def test_our_files_have_their_keys_and_comfyuis(tmp_path, vectors):
    save_embedding(Embedding("cat", vectors, 7), tmp_path / "cat.safetensors")
    assert equal(load_file(tmp_path / "cat.safetensors"), vectors | theirs(vectors))
    again = load_embedding(tmp_path / "cat.safetensors")
    assert equal(again.vectors, vectors) and again.step == 7


@FAMILIES
def test_what_a_program_copies_without_our_facts_is_the_same(tmp_path, vectors):
    save_embedding(Embedding("cat", vectors), tmp_path / "cat.safetensors")
    save_file(load_file(tmp_path / "cat.safetensors"), tmp_path / "copy.safetensors")
    assert equal(load_embedding(tmp_path / "copy.safetensors").vectors, vectors)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_t5_twice_and_not_the_same_is_refused(tmp_path, suffix):
    """What OneTrainer leaves of a file with both: it keeps what it does not know, and trains `t5`."""
    tensors = FLUX | {"t5": FLUX["t5xxl"] + 1}
    (save_file if suffix == ".safetensors" else torch.save)(tensors, tmp_path / f"cat{suffix}")
    with pytest.raises(UserError, match=rf"'cat{re.escape(suffix)}' holds .* as 't5' and as 't5xxl', and they differ"):
        load_embedding(tmp_path / f"cat{suffix}")


def test_t5_twice_in_other_precision_is_not_the_same(tmp_path):
    tensors = FLUX | {"t5": FLUX["t5xxl"].half()}
    save_file(tensors, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match="they differ"):
        load_embedding(tmp_path / "cat.safetensors")


def test_a_bundle_may_have_both_keys(tmp_path):
    bundled = {f"bundle_emb.<cat>.{key}": rows.clone() for key, rows in (FLUX | theirs(FLUX)).items()}
    save_file({"lora_up.weight": torch.ones(2, 2), **bundled}, tmp_path / "style.safetensors")
    assert list_bundled(tmp_path / "style.safetensors") == ["<cat>"]
    assert equal(load_embedding(tmp_path / "style.safetensors").vectors, FLUX)


def test_what_is_there_twice_counts_once(tmp_path, monkeypatch):
    """As much as is read from a file with one of them can be saved with both, and read again."""
    for part in ("safetensors", "tensors"):
        monkeypatch.setattr(f"textinv_core.formats.{part}.MAX_TENSOR_BYTES", 4 * 3 * 4096)
    rows = torch.randn(3, 4096)
    save_embedding(Embedding("cat", {"t5xxl": rows}), tmp_path / "cat.safetensors")
    assert torch.equal(load_embedding(tmp_path / "cat.safetensors").vectors["t5xxl"], rows)
    save_file({"t5xxl": rows[:1].clone(), "t5": rows}, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match="its tensors would take"):
        load_embedding(tmp_path / "cat.safetensors")


# --- diffusers' own loader


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


def clip(kind, width):
    import transformers

    from textinv_core.hosts.pipelines import clip_tokenizer

    sizes = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    tokenizer = clip_tokenizer("<|endoftext|>")
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**sizes, projection_dim=width)).eval(), tokenizer


def t5(width):
    import transformers

    config = transformers.T5Config(d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=1, vocab_size=32)
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((each, -3.0) for each in "aphotf")]
    return transformers.T5EncoderModel(config).eval(), transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0)


def flux(diffusers):
    (first, tokenizer), (second, tokenizer_2) = clip("CLIPTextModel", 8), t5(12)
    parts = {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(), "vae": None, "transformer": None}
    pipe = diffusers.FluxPipeline(
        text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer_2, **parts
    )
    return pipe, {"clip_l": ("", 8), "t5": ("_2", 12)}


def sdxl(diffusers):
    (first, tokenizer), (second, tokenizer_2) = clip("CLIPTextModel", 8), clip("CLIPTextModelWithProjection", 12)
    parts = {"scheduler": diffusers.EulerDiscreteScheduler(), "vae": None, "unet": None, "add_watermarker": False}
    pipe = diffusers.StableDiffusionXLPipeline(
        text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer_2, **parts
    )
    return pipe, {"clip_l": ("", 8), "clip_g": ("_2", 12)}


@pytest.mark.parametrize("make", [flux, sdxl])
def test_diffusers_puts_our_vectors_into_its_encoders(tmp_path, diffusers, make):
    """As its guides have it: `load_textual_inversion(state_dict["t5"], ...)`, one encoder at a time; SD3 has none."""
    pipe, encoders = make(diffusers)
    vectors = {"t5xxl" if key == "t5" else key: torch.randn(3, width) for key, (_, width) in encoders.items()}
    save_embedding(Embedding("cat", vectors), tmp_path / "cat.safetensors")
    state_dict = load_file(tmp_path / "cat.safetensors")
    before = pipe.encode_prompt("a photo of <cat>", None)[0]
    for key, (part, _) in encoders.items():
        encoder, tokenizer = getattr(pipe, f"text_encoder{part}"), getattr(pipe, f"tokenizer{part}")
        pipe.load_textual_inversion(state_dict[key], token="<cat>", text_encoder=encoder, tokenizer=tokenizer)
        ids = tokenizer(pipe.maybe_convert_prompt("<cat>", tokenizer), add_special_tokens=False).input_ids
        rows = encoder.get_input_embeddings().weight[ids]
        assert torch.equal(rows[-3:], vectors["t5xxl" if key == "t5" else key]), key
    assert not torch.allclose(pipe.encode_prompt("a photo of <cat>", None)[0], before)
