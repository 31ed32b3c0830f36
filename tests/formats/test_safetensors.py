import json
import re
import struct
from dataclasses import replace
from datetime import datetime

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from textinv_core import Embedding, load_embedding, save_embedding
from textinv_core.errors import UserError


def embedding(**widths):
    return Embedding("cat", {key: torch.randn(2, width) for key, width in widths.items()}, step=7)


def facts(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


SDXL = {"clip_l": 768, "clip_g": 1280}


def test_round_trip(tmp_path):
    before = Embedding(
        "cat",
        {"clip_l": torch.randn(3, 768), "clip_g": torch.randn(2, 1280)},
        step=1234,
        metadata={"textinv.base_model": "abc", "modelspec.author": "me", "modelspec.resolution": "512x768"},
    )
    save_embedding(before, tmp_path / "cat.safetensors")
    after = load_embedding(str(tmp_path / "cat.safetensors"))
    assert (after.name, after.step, after.metadata) == (before.name, before.step, before.metadata)
    assert after.vectors.keys() == before.vectors.keys()
    assert all(torch.equal(after.vectors[key], before.vectors[key]) for key in before.vectors)
    assert facts(tmp_path / "cat.safetensors")["textinv.vectors"] == "3"
    # And once more under another name: nothing stale comes along.
    save_embedding(after, tmp_path / "dog.safetensors")
    again = load_embedding(tmp_path / "dog.safetensors")
    assert again.name == "dog"
    assert again.metadata == before.metadata
    assert facts(tmp_path / "dog.safetensors")["modelspec.trigger_phrase"] == "embedding:dog"


@given(
    key=st.sampled_from(["clip_l", "clip_g", "t5xxl", "qwen3vl_8b", "an_encoder_to_come"]),
    n=st.integers(1, 5),
    width=st.integers(1, 9),
    step=st.none() | st.integers(0, 10**9),
)
def test_our_own_files_keep_any_key_width_and_step(tmp_path_factory, key, n, width, step):
    path = tmp_path_factory.mktemp("e") / "cat.safetensors"
    before = Embedding("cat", {key: torch.randn(n, width)}, step)
    save_embedding(before, path)
    after = load_embedding(path)
    assert after.step == step
    assert torch.equal(after.vectors[key], before.vectors[key])


def test_step_zero_is_known(tmp_path):
    save_embedding(Embedding("cat", {"clip_l": torch.ones(1, 768)}, step=0), tmp_path / "cat.safetensors")
    assert load_embedding(tmp_path / "cat.safetensors").step == 0


def test_of_other_facts_only_those_that_still_hold_are_kept(tmp_path):
    other = {"format": "pt", "modelspec.author": "me", "modelspec.title": "Cat", "modelspec.hash_sha256": "0xab"}
    save_file({"clip_l": torch.ones(1, 768)}, tmp_path / "cat.safetensors", other)
    assert load_embedding(tmp_path / "cat.safetensors").metadata == {"modelspec.author": "me"}


def test_what_the_host_reads(tmp_path):
    before = replace(embedding(**SDXL), metadata={"modelspec.resolution": "512x768"})
    save_embedding(before, tmp_path / "my_cat.safetensors")
    tensors, header = load_file(tmp_path / "my_cat.safetensors"), facts(tmp_path / "my_cat.safetensors")
    assert {key: (rows.dtype, tuple(rows.shape)) for key, rows in tensors.items()} == {
        "clip_l": (torch.float32, (2, 768)),
        "clip_g": (torch.float32, (2, 1280)),
    }
    assert datetime.fromisoformat(header.pop("modelspec.date")).tzinfo
    assert "embedding:my_cat" in header.pop("modelspec.usage_hint")
    assert header == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": "cat",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/textual-inversion",
        "modelspec.trigger_phrase": "embedding:my_cat",
        "modelspec.resolution": "512x768",
        "textinv.step": "7",
        "textinv.vectors": "2",
    }


@pytest.mark.parametrize(
    ("widths", "architecture"),
    [
        ({"clip_l": 768}, "stable-diffusion-v1/textual-inversion"),
        ({"clip_h": 1024}, "stable-diffusion-v2/textual-inversion"),
        ({"clip_g": 1280, "clip_l": 768}, "stable-diffusion-xl-v1-base/textual-inversion"),
        ({"clip_g": 1280}, None),
        ({"clip_l": 768, "t5xxl": 4096}, None),
    ],
)
def test_architecture(tmp_path, widths, architecture):
    save_embedding(embedding(**widths), tmp_path / "cat.safetensors")
    assert facts(tmp_path / "cat.safetensors").get("modelspec.architecture") == architecture


def test_saves_views_and_parameters(tmp_path):
    rows = torch.randn(768, 2, requires_grad=True)
    save_embedding(Embedding("cat", {"clip_l": rows.T, "clip_g": rows.T}), tmp_path / "cat.safetensors")
    after = load_embedding(tmp_path / "cat.safetensors")
    assert torch.equal(after.vectors["clip_l"], rows.T) and torch.equal(after.vectors["clip_g"], rows.T)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "cat.safetensors"
    save_embedding(embedding(clip_l=768), path)
    old = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_embedding(embedding(clip_l=768), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("key", ["clip_l[/x]", "\x1b[31mclip_l", "clip l", "", "k" * 65, "clip_l\n"])
def test_keys_that_are_no_names_of_encoders_are_refused(tmp_path, key):
    save_file({key: torch.ones(3, 768)}, tmp_path / "cat.safetensors", {"textinv.vectors": "3"})
    with pytest.raises(UserError, match="which is no text encoder") as error:
        load_embedding(tmp_path / "cat.safetensors")
    assert str(error.value).isprintable()


def test_keys_in_messages_do_nothing_to_a_terminal(tmp_path):
    save_file({"\x1b[31ma": torch.ones(3, 768), "b" * 999: torch.ones(3, 768)}, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match="holds 2 tensors") as error:
        load_embedding(tmp_path / "cat.safetensors")
    assert str(error.value).isprintable() and len(str(error.value)) < 300


@pytest.mark.parametrize(("width", "key"), [(768, "clip_l"), (1280, "clip_g"), (1024, "clip_h"), (4096, "t5xxl")])
@pytest.mark.parametrize("stored", ["emb_params", "*", "<cat>"])
def test_other_keys_go_by_width(tmp_path, stored, width, key):
    save_file({stored: torch.ones(3, width)}, tmp_path / "cat.safetensors")
    assert load_embedding(tmp_path / "cat.safetensors").vectors[key].shape == (3, width)


@pytest.mark.parametrize(("key", "width"), [("emp_params", 768), ("clip_l", 768), ("clip_g", 1280), ("t5", 4096)])
def test_onetrainers_output_vectors_are_left_out_and_it_is_said(tmp_path, caplog, key, width):
    save_file({key: torch.ones(2, width), f"{key}_out": torch.ones(3, width)}, tmp_path / "cat.safetensors")
    [rows] = load_embedding(tmp_path / "cat.safetensors").vectors.values()
    assert rows.shape == (2, width)
    assert f"'cat.safetensors' is read without {key}_out: vectors that OneTrainer puts in after" in caplog.text


def test_output_vectors_alone_are_refused(tmp_path):
    save_file({"clip_l_out": torch.ones(2, 768), "t5_out": torch.ones(2, 4096)}, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match=r"'cat.safetensors' holds only clip_l_out, t5_out: .*after the text encoder"):
        load_embedding(tmp_path / "cat.safetensors")


def test_a_word_that_ends_so_is_no_output_vector(tmp_path):
    save_file({"cat_out": torch.ones(2, 768)}, tmp_path / "cat.safetensors")
    assert load_embedding(tmp_path / "cat.safetensors").vectors["clip_l"].shape == (2, 768)


def test_onetrainers_t5_is_t5xxl(tmp_path):
    vectors = {"clip_l": torch.randn(2, 768), "t5": torch.randn(2, 4096)}
    save_file(vectors, tmp_path / "cat.safetensors")
    after = load_embedding(tmp_path / "cat.safetensors").vectors
    assert after.keys() == {"clip_l", "t5xxl"} and torch.equal(after["t5xxl"], vectors["t5"])
    save_file(vectors | {"t5xxl": torch.ones(2, 4096)}, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match="twice, as 't5' and as 't5xxl'"):
        load_embedding(tmp_path / "cat.safetensors")


def test_our_own_t5_stays_what_it_is(tmp_path):
    save_embedding(embedding(t5=8, t5_out=8), tmp_path / "cat.safetensors")
    assert load_embedding(tmp_path / "cat.safetensors").vectors.keys() == {"t5", "t5_out"}


def test_an_encoder_key_wins_over_the_width(tmp_path):
    save_file({"llama": torch.ones(1, 4096)}, tmp_path / "cat.safetensors")
    assert load_embedding(tmp_path / "cat.safetensors").vectors.keys() == {"llama"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_floats_become_float32_and_one_row(tmp_path, dtype):
    path = tmp_path / "0042.safetensors"
    save_file({"emb_params": torch.full((768,), 0.5, dtype=dtype)}, path, {"author": "me", "textinv.step": "²"})
    after = load_embedding(path)
    assert torch.equal(after.vectors["clip_l"], torch.full((1, 768), 0.5))
    assert (after.name, after.step, after.metadata) == ("my_0042", None, {})


def test_vectors_outlive_the_file(tmp_path):
    path = tmp_path / "cat.safetensors"
    save_embedding(Embedding("cat", {"clip_l": torch.ones(1, 768)}), path)
    after = load_embedding(path)
    with open(path, "r+b") as file:
        file.seek(-3072, 2)
        file.write(b"\0" * 3072)
    assert after.vectors["clip_l"].eq(1).all()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"emb_params": torch.ones(1, 77)}, "width 77 under 'emb_params'; widths known are 768"),
        ({"a": torch.ones(1, 768), "b": torch.ones(1, 1280)}, "2 tensors ('a', 'b'"),
        ({"clip_l": torch.ones(1, 2, 768)}, "'clip_l' is torch.float32 of shape [1, 2, 768]"),
        ({"clip_l": torch.ones(1, 768, dtype=torch.int64)}, "torch.int64"),
        ({"clip_l": torch.ones(0, 768)}, "[0, 768]"),
        ({"clip_l": torch.ones(1, 0)}, "[1, 0]"),
        ({"clip_l": torch.tensor(1.0)}, "of shape []"),
        ({"clip_l": torch.tensor([[1.0, float("nan")]])}, "not finite"),
        ({"clip_l": torch.tensor([[1.0, float("-inf")]])}, "not finite"),
        ({"clip_l": torch.tensor([[1e300]], dtype=torch.float64)}, "not finite"),
        ({}, "no vectors"),
    ],
)
def test_other_contents_are_refused(tmp_path, tensors, says):
    save_file(tensors, tmp_path / "cat.safetensors")
    with pytest.raises(UserError, match=f"cat.*{re.escape(says)}"):
        load_embedding(tmp_path / "cat.safetensors")


WHOLE = save({"clip_l": torch.ones(1, 2)})


def with_header(header):
    data = json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + b"\0" * 8


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:-1],
        WHOLE[:20],
        WHOLE + b"\0",
        b"\xff" * 64,
        with_header({"clip_l": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 800]}}),
        with_header({"clip_l": {"dtype": "F32", "shape": [1, 2**62], "data_offsets": [0, 8]}}),
        with_header({"clip_l": {"dtype": "F4", "shape": [1, 16], "data_offsets": [0, 8]}}),
        with_header([]),
    ],
)
def test_damaged_files_are_named(tmp_path, data):
    (tmp_path / "cat.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"'cat.safetensors' cannot be read as safetensors"):
        load_embedding(tmp_path / "cat.safetensors")


def test_a_header_is_not_parsed_that_is_too_long(tmp_path):
    (tmp_path / "cat.safetensors").write_bytes(struct.pack("<Q", 2**23 + 1) + b"{" * 2**23)
    with pytest.raises(UserError, match=r"its header would have 8 MiB, and 8 are the most"):
        load_embedding(tmp_path / "cat.safetensors")


def test_no_tensor_is_made_where_all_are_too_many(tmp_path, monkeypatch):
    small = torch.zeros(2**12, 2**11, dtype=torch.float8_e4m3fn)  # 8 MiB, 32 as float32
    save_file({"clip_l": small, "clip_g": small.clone()}, tmp_path / "cat.safetensors")
    assert load_embedding(tmp_path / "cat.safetensors").vectors["clip_l"].shape == small.shape
    save_file({"clip_l": small, "clip_g": small.clone(), "t5xxl": torch.ones(1)}, tmp_path / "cat.safetensors")
    monkeypatch.setattr("textinv_core.formats.safetensors.vectors_of", None)
    with pytest.raises(UserError, match=r"its tensors would take 64 MiB, and 64 are the most"):
        load_embedding(tmp_path / "cat.safetensors")


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_one_wrong_byte_is_at_worst_a_value_error(tmp_path_factory, at, byte):
    path = tmp_path_factory.mktemp("e") / "cat.safetensors"
    path.write_bytes(WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :])
    try:
        assert load_embedding(path).vectors
    except UserError as error:
        assert "cat" in str(error)


def test_a_suffix_may_be_capitals(tmp_path):
    (tmp_path / "CAT.SAFETENSORS").write_bytes(WHOLE)
    assert load_embedding(tmp_path / "CAT.SAFETENSORS").name == "CAT"
