"""Embedding files of every kind, saved and loaded by the nodes in graphs, and read by whoever else reads them."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.rig import PACK

TOYWORLD = PACK / "textinv_core" / "toyworld"
WORLD = {"class_type": "TestLoadToyWorld", "inputs": {"folder": str(TOYWORLD)}}
FORMATS = ("safetensors", "pt", "bin", "png")


@pytest.fixture(scope="module")
def embeddings(server) -> Path:
    return server.base / "models" / "embeddings"


@pytest.fixture(scope="module")
def saved(server) -> dict:
    """What the node says of one embedding, saved in each format as `four-<format>`."""
    graph = {
        "world": WORLD,
        "image": {"class_type": "EmptyImage", "inputs": {"width": 96, "height": 64, "color": 7**7, "batch_size": 1}},
    }
    for kind in FORMATS:
        inputs = {"clip": ["world", 1], "name": f"four-{kind}", "init_text": "red figure", "vectors": 2}
        graph[f"new {kind}"] = {"class_type": "TextInvCreateEmbedding", "inputs": inputs}
        inputs = {"embedding": [f"new {kind}", 0], "format": kind, "overwrite": True, "image": ["image", 0]}
        graph[kind] = {"class_type": "TextInvSaveEmbedding", "inputs": inputs}
    return server.run(graph)


def picture(server, **encode: tuple) -> dict[str, np.ndarray]:
    """What the toy model makes of texts: name -> (text, the CLIP to encode it with, further nodes)."""
    graph = {
        "world": WORLD,
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }
    for name, (text, clip, nodes) in encode.items():
        graph |= nodes
        graph[f"{name} text"] = {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": clip}}
        sampling = {"seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        links = {"model": ["world", 0], "latent_image": ["latent", 0]}
        links |= {"positive": [f"{name} text", 0], "negative": [f"{name} text", 0]}
        graph[f"{name} made"] = {"class_type": "KSampler", "inputs": sampling | links}
        inputs = {"samples": [f"{name} made", 0], "vae": ["world", 2]}
        graph[f"{name} decoded"] = {"class_type": "VAEDecode", "inputs": inputs}
        graph[name] = {"class_type": "PreviewImage", "inputs": {"images": [f"{name} decoded", 0]}}
    outputs = server.run(graph)
    return {name: np.asarray(Image.open(server.file(outputs[name]["images"][0]))) for name in encode}


def test_every_format_means_the_same_to_prompts(server, saved):
    prompts = {kind: (f"a embedding:four-{kind} figure", ["world", 1], {}) for kind in ("safetensors", "pt", "bin")}
    applied = {
        "load": {"class_type": "TextInvLoadEmbedding", "inputs": {"name": "four-png.png"}},
        "apply": {
            "class_type": "TextInvApplyEmbedding",
            "inputs": {"clip": ["world", 1], "embedding": ["load", 0]},
        },
    }
    made = picture(
        server,
        **prompts,
        png=("a embedding:four-png figure", ["apply", 0], applied),
        without=("a embedding:four-png figure", ["world", 1], {}),
    )
    for kind in ("pt", "bin", "png"):
        assert np.array_equal(made[kind], made["safetensors"]), kind
    assert not np.array_equal(made["without"], made["safetensors"])  # no prompt finds a picture, as the node says
    texts = {kind: saved[kind]["text"][0] for kind in FORMATS}
    assert all(texts[kind].startswith(f"Saved as embedding:four-{kind}\n") for kind in prompts)
    assert texts["png"].startswith("Saved in a picture: for Load Embedding and A1111. Prompts do not find it.\n")


def test_every_format_means_the_same_to_diffusers(saved, embeddings):
    diffusers = pytest.importorskip("diffusers.loaders.textual_inversion", reason="diffusers is not installed")
    read = diffusers.load_textual_inversion_state_dicts
    [plain] = read([str(embeddings)], weight_name="four-safetensors.safetensors")
    [a1111] = read([str(embeddings)], weight_name="four-pt.pt")
    [older] = read([str(embeddings)], weight_name="four-bin.bin")
    [rows] = plain.values()
    assert rows.shape == (2, 96)
    assert torch.equal(a1111["string_to_param"]["*"], rows)
    assert [torch.equal(each, rows) for each in older.values()] == [True]


def test_a_png_without_an_image_is_refused_before_the_graph_runs(server):
    graph = {"world": WORLD}
    inputs = {"clip": ["world", 1], "name": "four", "init_text": "red", "vectors": 1}
    graph["new"] = {"class_type": "TextInvCreateEmbedding", "inputs": inputs}
    inputs = {"embedding": ["new", 0], "format": "png", "overwrite": False}
    graph["save"] = {"class_type": "TextInvSaveEmbedding", "inputs": inputs}
    with pytest.raises(server.Error, match="A png needs a picture"):
        server.post(graph)
    graph["save"]["inputs"]["format"] = "ckpt"
    with pytest.raises(server.Error, match="There is no format 'ckpt'"):
        server.post(graph)


def a1111_pixels(rows: torch.Tensor, height: int = 64) -> np.ndarray:
    """A picture with an embedding in its sides, by A1111's rules, number by number; without the ornament."""
    data = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {"TORCHTENSOR": rows.tolist()}},
        "name": "elsewhere",
    }
    packed = zlib.compress(json.dumps(data).encode(), 9)
    size = len(packed) + height - len(packed) % height
    size += 3 * height - size % (3 * height)
    state, blocks = 0, ([], [])
    for i in range(size):
        state = (1664525 * state + 1013904223) % 2**32
        byte = packed[i % len(packed)]
        blocks[0].append(byte & 15 ^ state % 255 & 15)
        blocks[1].append(byte >> 4 ^ state % 255 & 15)
    low, high = (np.array(block, np.uint8).reshape(height, -1, 3) for block in blocks)
    black = np.zeros((height, 1, 3), np.uint8)
    return np.concatenate([low, black, np.full((height, 90, 3), 77, np.uint8), black, high], 1)


def test_what_others_wrote_is_in_the_list_and_loads_by_name(server, embeddings):
    files = ("a1111.pt", "onetrainer.safetensors", "pixels.png")
    rows = {name: torch.randn(2, 768) for name in (*files, "first", "second")}
    data = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows["a1111.pt"]},
        "name": "a1111",
        "step": 99,
        "sd_checkpoint": "81761151",
        "sd_checkpoint_name": "v1-5",
    }
    (embeddings / "others").mkdir()
    torch.save(data, embeddings / "others" / "a1111.pt")
    Image.fromarray(a1111_pixels(rows["pixels.png"])).save(embeddings / "others" / "pixels.png")
    Image.new("RGB", (64, 64), "red").save(embeddings / "others" / "a1111.preview.png")
    trainers = {"emp_params": rows["onetrainer.safetensors"], "emp_params_out": torch.randn(2, 768)}
    save_file(trainers, embeddings / "others" / "onetrainer.safetensors")
    bundle = {f"bundle_emb.<{name}>.clip_l": rows[name] for name in ("first", "second")}
    lora = {"lora_unet_x.lora_up.weight": torch.ones(2, 2), **bundle}
    save_file(lora, server.base / "models" / "loras" / "style.safetensors")

    entries = {f"others/{name}": name for name in files}
    entries |= {f"lora: style.safetensors > <{name}>": name for name in ("first", "second")}
    info = server.get("/object_info/TextInvLoadEmbedding")["TextInvLoadEmbedding"]["input"]["required"]["name"]
    options = info[1]["options"] if info[0] == "COMBO" else info[0]
    ours = [each for each in options if each.startswith(("others", "lora: style"))]
    assert ours == list(entries)

    graph = {}
    for entry, name in entries.items():
        graph[f"load {name}"] = {"class_type": "TextInvLoadEmbedding", "inputs": {"name": entry}}
        inputs = {"embedding": [f"load {name}", 0], "format": "safetensors", "overwrite": True}
        graph[name] = {"class_type": "TextInvSaveEmbedding", "inputs": inputs}
    outputs = server.run(graph)
    for name in rows:
        path = outputs[name]["text"][0].splitlines()[-1]
        assert torch.equal(load_file(path)["clip_l"], rows[name]), name
    assert "embedding:elsewhere" in outputs["pixels.png"]["text"][0]  # what it was called when it was put there
    assert "'onetrainer.safetensors' is read without emp_params_out" in server.log_text()


@pytest.mark.parametrize(
    "name", ["../../../server.log", "/etc/passwd", "nowhere.pt", "lora: nowhere.safetensors > cat"]
)
def test_what_is_not_in_the_folders_is_refused_before_the_graph_runs(server, name):
    graph = {"load": {"class_type": "TextInvLoadEmbedding", "inputs": {"name": name}}}
    inputs = {"embedding": ["load", 0], "format": "safetensors", "overwrite": True}
    graph["save"] = {"class_type": "TextInvSaveEmbedding", "inputs": inputs}
    with pytest.raises(server.Error, match="There is no embedding"):
        server.post(graph)
