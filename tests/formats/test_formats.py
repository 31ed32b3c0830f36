"""What holds for every kind of file, and what diffusers makes of them."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import same
from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.embedding import safe_name
from textinv_core.errors import UserError
from textinv_core.formats import FORMATS
from textinv_core.formats.tensors import ENCODER_KEYS, KEY_BY_WIDTH

PICTURE = torch.linspace(0, 1, 64 * 72 * 3).reshape(64, 72, 3)
WRITTEN = [".safetensors", ".pt", ".bin", ".png"]


def save(embedding, path):
    save_embedding(embedding, path, PICTURE if path.suffix == ".png" else None)


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True).filter(lambda name: safe_name(name) == name)
STEPS = st.none() | st.integers(0, 10**9)
FACTS = st.dictionaries(
    st.sampled_from(["textinv.base_model", "textinv.sd_checkpoint", "textinv.sd_checkpoint_name", "modelspec.author"]),
    st.text(st.characters(codec="utf-8"), max_size=9),
)
SHAPES = st.tuples(st.integers(1, 5), st.sampled_from([96, 32, *KEY_BY_WIDTH]))


def some(n, width, seed=0):
    # Values of every size a float32 has, so that text with too few digits would show.
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) * 10.0 ** torch.randint(
        -30, 30, (width,)
    )


@pytest.mark.parametrize("suffix", [s for s in WRITTEN if s != ".bin"])
@settings(max_examples=25, deadline=None)
@given(name=NAMES, key=st.sampled_from([*sorted(ENCODER_KEYS), "to_come"]), shape=SHAPES, step=STEPS, facts=FACTS)
def test_one_encoder_comes_back_whole(tmp_path_factory, suffix, name, key, shape, step, facts):
    path = tmp_path_factory.mktemp("e") / f"{name}{suffix}"
    before = Embedding(name, {key: some(*shape)}, step, facts)
    save(before, path)
    after = load_embedding(path)
    assert (after.name, after.step, after.metadata) == (name, step, facts)
    assert same(after, before)


@pytest.mark.parametrize("suffix", WRITTEN)
@settings(max_examples=25, deadline=None)
@given(keys=st.sets(st.sampled_from(sorted(ENCODER_KEYS)), min_size=1, max_size=3), shape=SHAPES)
def test_vectors_and_keys_come_back(tmp_path_factory, suffix, keys, shape):
    path = tmp_path_factory.mktemp("e") / f"cat{suffix}"
    before = Embedding("cat", {key: some(*shape, seed) for seed, key in enumerate(sorted(keys))})
    save(before, path)
    assert same(load_embedding(path), before)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_from_kind_to_kind_nothing_gets_lost(tmp_path, suffix):
    before = Embedding("cat", {"clip_l": some(2, 768)}, 9, {"textinv.sd_checkpoint": "81761151"})
    save(before, tmp_path / f"cat{suffix}")
    save(load_embedding(tmp_path / f"cat{suffix}"), tmp_path / "dog.safetensors")
    after = load_embedding(tmp_path / "dog.safetensors")
    assert same(after, before)
    if suffix != ".bin":
        assert (after.step, after.metadata) == (before.step, before.metadata)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_vectors_in_training_can_be_saved(tmp_path, suffix):
    rows = torch.randn(768, 2, requires_grad=True)
    save(Embedding("cat", {"clip_l": rows.T}), tmp_path / f"cat{suffix}")
    after = load_embedding(tmp_path / f"cat{suffix}").vectors["clip_l"]
    assert torch.equal(after, rows.T)
    assert not after.requires_grad


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"cat{suffix}"
    save(Embedding("cat", {"clip_l": torch.ones(1, 768)}), path)
    old = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save(Embedding("cat", {"clip_l": torch.zeros(1, 768)}), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\x89PNG\r\n\x1a\n", b"\xff" * 64, b"\0" * 64, b"\x80\x02}."])
def test_other_files_of_the_name_are_damaged(tmp_path, suffix, data):
    (tmp_path / f"cat{suffix}").write_bytes(data)
    with pytest.raises(UserError, match=f"'cat{suffix}'"):
        load_embedding(tmp_path / f"cat{suffix}")


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".safetensors"])
def test_size_is_bounded(tmp_path, monkeypatch, suffix):
    (tmp_path / f"cat{suffix}").write_bytes(b"\0" * 101)
    monkeypatch.setattr(sys.modules[FORMATS[suffix].read.__module__], "MAX_FILE_BYTES", 100)
    with pytest.raises(UserError, match=rf"'cat{suffix}' was not opened: it has"):
        load_embedding(tmp_path / f"cat{suffix}")


@pytest.mark.parametrize("name", ["cat.ckpt", "cat", "cat.safetensors.txt"])
def test_other_suffixes_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    for use in (load_embedding, lambda path: save_embedding(Embedding("cat", {"clip_l": torch.ones(1, 768)}), path)):
        with pytest.raises(UserError, match=f"'{name}' is no embedding file: those end in .safetensors, .pt"):
            use(tmp_path / name)


def test_a_missing_file_is_the_systems_error(tmp_path):
    for suffix in FORMATS:
        with pytest.raises(FileNotFoundError):
            load_embedding(tmp_path / f"cat{suffix}")


class Vocabulary:
    """A tokenizer for diffusers, which refuses names that are words already."""

    def get_vocab(self):
        return {"cat": 1}


@pytest.mark.parametrize(("suffix", "token"), [(".bin", "<cat>"), (".pt", "my-cat"), (".safetensors", "clip_l")])
def test_diffusers_reads(tmp_path, suffix, token):
    diffusers = pytest.importorskip("diffusers.loaders.textual_inversion", reason="diffusers is not installed")
    path = tmp_path / f"embedding{suffix}"
    vectors = {"clip_l": some(2, 768)}
    save(Embedding("cat" if suffix == ".bin" else "my-cat", vectors, 7, {"textinv.base_model": "abc"}), path)
    state_dicts = diffusers.load_textual_inversion_state_dicts([str(tmp_path)], weight_name=path.name)
    mixin = diffusers.TextualInversionLoaderMixin
    tokens, embeddings = mixin._retrieve_tokens_and_embeddings([None], state_dicts, Vocabulary())
    assert tokens == [token]
    assert torch.equal(embeddings[0], vectors["clip_l"])


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors"])
def test_diffusers_reads_sdxl(tmp_path, suffix):
    """As its documentation has it: `load_textual_inversion(state_dict["clip_g"], ...)`, one encoder at a time."""
    diffusers = pytest.importorskip("diffusers.loaders.textual_inversion", reason="diffusers is not installed")
    path = tmp_path / f"embedding{suffix}"
    vectors = {"clip_l": some(2, 768), "clip_g": some(2, 1280)}
    save(Embedding("cat", vectors, 7), path)
    [state_dict] = diffusers.load_textual_inversion_state_dicts([str(tmp_path)], weight_name=path.name)
    assert state_dict.keys() == vectors.keys()
    assert all(torch.equal(state_dict[key], vectors[key]) for key in vectors)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".png"])
def test_facts_that_a_file_could_not_hold_are_left_out(tmp_path, suffix):
    """What the header of a .safetensors has room for is too much for a pickle that is read."""
    facts = {"modelspec.thumbnail": "x" * 2_000_000, "modelspec.author": "Ada"}
    save_embedding(Embedding("cat", {"clip_l": torch.ones(1, 768)}, 7, facts), tmp_path / "from.safetensors")
    read = load_embedding(tmp_path / "from.safetensors")
    assert read.metadata == {"modelspec.author": "Ada"}
    save_embedding(read, tmp_path / f"to{suffix}", torch.ones(64, 64, 3) if suffix == ".png" else None)
    assert load_embedding(tmp_path / f"to{suffix}").metadata == read.metadata
