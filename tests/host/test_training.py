"""The whole way on the real host: pictures in a folder, training, and the embedding in use."""

import csv
import json
import re
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

GRAPHS = Path(__file__).parent / "graphs"
COLOURS = ("crimson", "seagreen", "royalblue", "goldenrod")


@pytest.fixture(scope="session")
def pictures(base) -> str:
    """A folder of four drawings of one toy, of different sizes, with captions for two of them."""
    folder = base / "input" / "my_subject"
    folder.mkdir()
    for i, colour in enumerate(COLOURS):
        image = Image.new("RGB", (96 + 8 * i, 80), "white")
        draw = ImageDraw.Draw(image)
        draw.rectangle((20, 40, 70, 76), fill=colour)
        draw.ellipse((28, 8, 62, 42), fill="tan")
        image.save(folder / f"{i + 1}-a toy in {colour}.png")
    (folder / f"1-a toy in {COLOURS[0]}.txt").write_text("a toy on a table")
    return folder.name


def training_graph(checkpoint="sd15", example="train_subject_sd15", **changes):
    """An example graph for a small checkpoint and small pictures; changes: inputs of the training node."""
    graph = json.loads((GRAPHS / f"{example}.json").read_text())
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    inputs["CheckpointLoaderSimple"]["ckpt_name"] = f"{checkpoint}.safetensors"
    for kind in ("TextInvPreprocess", "EmptyLatentImage"):
        inputs[kind].update(width=64, height=64)
    inputs["KSampler"]["steps"] = 2
    inputs["TextInvLoadImages"]["folder"] = "my_subject"
    name = changes.pop("name", f"toy-{checkpoint}")
    own = inputs["TextInvCreateEmbedding"]["name"]
    inputs["TextInvCreateEmbedding"].update(name=name, vectors=2)
    for node in graph.values():
        if "text" in node["inputs"]:
            node["inputs"]["text"] = node["inputs"]["text"].replace(own, name)
    quick = {"steps": 12, "gradient_accumulation": 1, "preview_steps": 2, "learning_rate": "0.01"}
    inputs["TextInvTrainEmbedding"].update(quick | changes)
    return graph


def node(graph, kind):
    return next(key for key, node in graph.items() if node["class_type"] == kind)


def stock_graph(graph):
    """Only its stock nodes: what uses the saved file, in a graph that knows nothing of the pack."""
    stock = {key: node for key, node in deepcopy(graph).items() if not node["class_type"].startswith("TextInv")}
    for kind in ("LossGraphNode", "PreviewImage"):
        stock.pop(node(stock, kind))
    for encode in (n for n in stock.values() if n["class_type"] == "CLIPTextEncode"):
        encode["inputs"]["clip"] = [node(stock, "CheckpointLoaderSimple"), 1]
    return stock


def saved_picture(server, graph, outputs):
    (reference,) = outputs[node(graph, "SaveImage")]["images"]
    with Image.open(server.file(reference)) as image:
        return np.asarray(image, dtype=float)


def runs(server, name) -> list[Path]:
    return sorted((server.base / "output" / "textual_inversion" / name).iterdir())


def losses(run) -> list[float]:
    with (run / "textual_inversion_loss.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("checkpoint", "example"),
    [
        ("sd15", "train_subject_sd15"),
        ("sd15_inpaint", "train_style_sd15"),
        ("sd2v", "train_subject_sd15"),
        ("sdxl", "train_subject_sdxl"),
    ],
)
def test_train_apply_save_and_use_by_name(server, pictures, checkpoint, example):
    steps = 6 if checkpoint == "sdxl" else 12
    graph = training_graph(checkpoint, example, steps=steps)
    name = f"toy-{checkpoint}"
    stock = stock_graph(graph)
    without = saved_picture(server, stock, server.run(stock))  # the name is not known yet, and ignored

    outputs = server.run(graph, timeout=900)
    applied = saved_picture(server, graph, outputs)
    (run,) = runs(server, name)
    assert len(losses(run)) == steps
    assert {path.name for path in (run / "embeddings").iterdir()} == {f"{name}-{steps}.safetensors"}
    assert (run / "images" / f"{name}-{steps}.png").is_file()
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["pictures"], settings["steps"], settings["shuffle"]["mode"]) == (4, steps, "dynamic")
    for shown in ("LossGraphNode", "PreviewImage"):
        assert server.file(outputs[node(graph, shown)]["images"][0]).is_file()

    file = server.base / "models" / "embeddings" / f"{name}.safetensors"
    keys = {"sd2v": {"clip_h": 1024}, "sdxl": {"clip_l": 768, "clip_g": 1280}}.get(checkpoint, {"clip_l": 768})
    with safe_open(file, "np") as opened:
        assert {key: opened.get_tensor(key).shape for key in opened.keys()} == {k: (2, w) for k, w in keys.items()}  # noqa: SIM118
        assert opened.metadata()["textinv.step"] == str(steps)
    assert file.with_suffix(".preview.png").is_file()
    assert name in server.get("/embeddings")
    shown = server.get(f"/view_metadata/embeddings?filename={name}.safetensors")
    assert shown["modelspec.title"] == name
    assert shown["modelspec.trigger_phrase"] == f"embedding:{name}"
    assert shown["modelspec.resolution"] == "64x64"

    stock[node(stock, "CLIPTextEncode")]["inputs"]["text"] += " "  # else the host answers from its cache
    by_name = saved_picture(server, stock, server.run(stock))
    assert np.array_equal(by_name, applied)
    assert np.abs(by_name - without).mean() > 0.5


def test_pictures_from_the_model_are_the_same_after_training_error_and_cancel(server, pictures):
    """One server, one loaded model: what it makes stays what it was, whatever ended a training in between."""
    plain = stock_graph(training_graph())
    plain[node(plain, "CLIPTextEncode")]["inputs"]["text"] = "a toy on a beach"

    def picture(salt):
        plain[node(plain, "SaveImage")]["inputs"]["filename_prefix"] = salt
        plain[node(plain, "KSampler")]["inputs"]["denoise"] = 1.0 - 1e-9 * len(salt)  # not from the cache
        return saved_picture(server, plain, server.run(plain))

    before = picture("a")
    server.run(training_graph(name="after-success", steps=3))
    assert np.array_equal(picture("bb"), before)

    with pytest.raises(server.Error, match=r"diverged.*lower learning rate.*kept in .*diverging-3\.safetensors"):
        server.run(training_graph(name="diverging", learning_rate="0.01:3, 1e30"))
    assert np.array_equal(picture("ccc"), before)

    prompt = server.post(training_graph(name="cancelled", steps=900))
    deadline = time.monotonic() + 120
    while not re.search(r"textinv: cancelled, step \d+/900, loss", server.log_text()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    server.interrupt()
    asked = time.monotonic()
    entry = server.wait(prompt, timeout=60)
    assert entry["status"]["status_str"] == "error"
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    assert time.monotonic() - asked < 30
    (run,) = runs(server, "cancelled")
    (kept,) = (run / "embeddings").iterdir()
    assert kept.name == f"cancelled-{len(losses(run))}.safetensors"
    assert np.array_equal(picture("dddd"), before)


def test_lora_trains_as_patched(server, pictures, base, checkpoints):
    """A stock LoRA between loader and training changes what is learnt, from the first loss on."""
    weights = load_file(checkpoints / "sd15.safetensors")
    key = next(k for k in weights if k.endswith("attn2.to_v.weight"))
    name = key.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
    random = np.random.default_rng(0)
    rows, columns = weights[key].shape
    save_file(
        {
            f"lora_unet_{name}.lora_up.weight": random.normal(size=(rows, 4)).astype(np.float32),
            f"lora_unet_{name}.lora_down.weight": random.normal(size=(4, columns)).astype(np.float32),
        },
        base / "models" / "loras" / "patch.safetensors",
    )
    graph = training_graph(name="plain", steps=2, preview_steps=0)
    patched = training_graph(name="patched", steps=2, preview_steps=0)
    loader, trainer = node(patched, "CheckpointLoaderSimple"), node(patched, "TextInvTrainEmbedding")
    patched["lora"] = {
        "class_type": "LoraLoader",
        "inputs": {
            "model": [loader, 0],
            "clip": [loader, 1],
            "lora_name": "patch.safetensors",
            "strength_model": 1.0,
            "strength_clip": 1.0,
        },
    }
    patched[trainer]["inputs"].update(model=["lora", 0], clip=["lora", 1])
    for each in (graph, patched):
        server.run(each)
    (without,), (with_lora,) = runs(server, "plain"), runs(server, "patched")
    assert losses(without)[0] != losses(with_lora)[0]
    # The same seed draws the same noise: without the LoRA again, the same losses to the last digit.
    again = training_graph(name="plain", steps=2, preview_steps=0, custom_template="not used")
    server.run(again)
    assert losses(runs(server, "plain")[-1]) == losses(without)


def test_wrong_width_names_both_sizes(server):
    graph = training_graph(name="wide")
    loader, create = node(graph, "CheckpointLoaderSimple"), node(graph, "TextInvCreateEmbedding")
    other = {
        loader: graph[loader],
        create: graph[create],
        "other": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd2v.safetensors"}},
        "apply": {"class_type": "TextInvApplyEmbedding", "inputs": {"clip": ["other", 1], "embedding": [create, 0]}},
        "encode": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["apply", 0], "text": "embedding:wide"}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["encode", 0]}},
    }
    with pytest.raises(server.Error, match=r"clip_l 2 x 768.*1024 for clip_h"):
        server.run(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "custom", "custom_template": "a photo of a toy"}, r"\[name\]"),
        ({"template": "none"}, "names the embedding"),
        ({"learning_rate": "0.01:4, oops"}, "oops"),
        ({"min_timestep": 600, "max_timestep": 500}, "min_timestep"),
    ],
)
def test_bad_settings_are_sentences(server, pictures, changes, message):
    with pytest.raises(server.Error, match=message):
        server.run(training_graph(name="bad", **changes))


def test_folder_escapes_are_refused(server, pictures, base):
    outside = base / "outside"
    outside.mkdir()
    Image.new("RGB", (64, 64), "red").save(outside / "secret.png")
    (base / "input" / "leads_out").symlink_to(outside, target_is_directory=True)
    (base / "input" / "empty").mkdir()
    for folder, message in {
        "../outside": "outside",
        str(outside): "outside",
        "leads_out": "outside",
        "empty": "no picture|no readable|There is no",
        "not_there": "no folder",
    }.items():
        graph = training_graph(name="escape")
        graph[node(graph, "TextInvLoadImages")]["inputs"]["folder"] = folder
        with pytest.raises(server.Error, match=message):
            server.run(graph)


def test_new_picture_makes_the_loader_run_again(server, pictures, base):
    folder = base / "input" / "growing"
    folder.mkdir()
    graph = {
        "load": {
            "class_type": "TextInvLoadImages",
            "inputs": {
                "folder": "growing",
                "recursive": False,
                "captions": "auto",
                "filename_word_regex": "",
                "filename_join_string": " ",
            },
        },
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["load", 0]}},
    }
    for count in (1, 2):
        Image.new("RGB", (32, 32), COLOURS[count]).save(folder / f"{count}.png")
        assert len(server.run(graph)["show"]["images"]) == count


def test_shuffle_modes_as_text(server):
    graph = {
        "shuffle": {
            "class_type": "TextInvShuffleConfig",
            "inputs": {"mode": "on", "per": "sample", "progressive_words": False, "unlock_every": 2000},
        },
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["shuffle", 0]}},
    }
    assert "mode='all'" in str(server.run(graph)["show"])
    graph["shuffle"]["inputs"]["mode"] = "sideways"
    with pytest.raises(server.Error, match=r"no shuffle mode 'sideways'.*trailing"):
        server.run(graph)


def test_save_overwrites_only_if_told(server, pictures, base):
    def save(overwrite, init_text, name="kept"):
        graph = {
            "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
            "create": {
                "class_type": "TextInvCreateEmbedding",
                "inputs": {"clip": ["model", 1], "name": name, "init_text": init_text, "vectors": 0},
            },
            "save": {
                "class_type": "TextInvSaveEmbedding",
                "inputs": {"embedding": ["create", 0], "format": "safetensors", "overwrite": overwrite},
            },
        }
        server.run(graph)
        folder = base / "models" / "embeddings"
        return {path.stem: len(load_file(path)["clip_l"]) for path in folder.glob("kept*.safetensors")}

    assert save(False, "dog") == {"kept": 1}
    assert save(False, "red dog") == {"kept": 1, "kept_2": 2}
    assert save(True, "big red dog") == {"kept": 3, "kept_2": 2}
    with pytest.raises(server.Error, match=r"'my dog'.*Try 'my_dog'"):
        save(False, "dog", "my dog")
