"""The training node in the real host, on the toy world: what is red before anything runs, and what a run survives."""

import json
import shutil
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.rig import PACK
from textinv_core import load_embedding

WORLD = PACK / "textinv_core" / "toyworld"
LOAD = {"folder": "my_figure", "recursive": False, "captions": "none", "filename_word_regex": "",
        "filename_join_string": " "}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(base) -> Path:
    folder = base / "input" / "my_figure"
    shutil.copytree(WORLD / "pictures", folder, dirs_exist_ok=True)  # other modules have them too
    return folder


def graph(name: str, model: str = "world", **inputs) -> dict:
    """A training of 4 steps whose embedding is saved, without any of the node's optional inputs."""
    required = {"template": "subject", "steps": 4, "learning_rate": "0.01", "batch_size": 2, "gradient_accumulation": 1}
    return {
        "world": {"class_type": "TestLoadToyWorld", "inputs": {"folder": str(WORLD)}},
        "pictures": {"class_type": "TextInvLoadImages", "inputs": LOAD},
        "new": {
            "class_type": "TextInvCreateEmbedding",
            "inputs": {"clip": ["world", 1], "name": name, "init_text": "figure", "vectors": 2},
        },
        "train": {
            "class_type": "TextInvTrainEmbedding",
            "inputs": {
                "model": [model, 0],
                "clip": ["world", 1],
                "vae": ["world", 2],
                "embedding": ["new", 0],
                "images": ["pictures", 0],
                "seed": 0,
                **required,
                **inputs,
            },
        },
        "save": {
            "class_type": "TextInvSaveEmbedding",
            "inputs": {"embedding": ["train", 0], "format": "safetensors", "overwrite": True},
        },
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["train", 2]}},
        "loss": {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 1], "filename_prefix": name}},
    }


def run_folder(server, name: str) -> Path:
    [folder] = (server.base / "output" / "textual_inversion" / name).iterdir()
    return folder


def saved_step(server, name: str) -> int | None:
    return load_embedding(server.base / "models" / "embeddings" / f"{name}.safetensors").step


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"learning_rate": "0.01:5, fast"}, "'fast' cannot be read"),
        ({"learning_rate": ""}, "learning rate is empty"),
        ({"learning_rate": "0"}, "Nothing would be learnt"),
        ({"template": "custom", "custom_template": " "}, "custom template has no lines"),
        ({"template": "custom", "custom_template": "a photo"}, "does not say \\[name\\]"),
        ({"template": "custom"}, "custom template has no lines"),
        ({"template": "stile"}, "no template 'stile'"),
    ],
)
def test_a_mistyped_setting_is_red_before_anything_is_loaded(server, pictures, inputs, words):
    with pytest.raises(server.Error, match=rf"TextInvTrainEmbedding \(train\): .*{words}"):
        server.post(graph("red", **inputs))


def test_settings_that_are_linked_are_checked_when_the_graph_runs(server, pictures):
    linked = graph("linked", learning_rate=["rate", 0])
    linked["rate"] = {"class_type": "PrimitiveString", "inputs": {"value": "fast"}}
    with pytest.raises(server.Error, match=r"TextInvTrainEmbedding.*'fast' cannot be read"):
        server.run(linked)
    assert not (server.base / "output" / "textual_inversion" / "linked").exists()


def test_without_its_optional_inputs_the_node_does_what_its_widgets_say(server, pictures):
    """Twenty sampling steps of preview among them."""
    outputs = server.run(graph("no-options"))
    assert (run_folder(server, "no-options") / "images" / "no-options-4.png").is_file()
    [shown] = outputs["preview"]["images"]
    assert server.file(shown).is_file() and saved_step(server, "no-options") == 4


@pytest.mark.parametrize(("how", "said"), [("fail", "sampling was told to fail"), ("cancel", "preview was cancelled")])
def test_a_preview_that_fails_or_is_cancelled_costs_no_output(server, pictures, how, said):
    name = f"preview-{how}"
    broken = graph(name, "broken")
    broken["broken"] = {"class_type": "TestStopSampling", "inputs": {"model": ["world", 0], "how": how}}
    outputs = server.run(broken)
    assert saved_step(server, name) == 4
    assert server.file(outputs["loss"]["images"][0]).is_file()
    assert server.file(outputs["preview"]["images"][0]).is_file()  # the first of the pictures
    assert said in server.log_text() and not (run_folder(server, name) / "images").exists()


HOW = {"seed": 5, "steps": 3, "cfg": 4.5, "sampler_name": "euler_ancestral", "scheduler": "karras", "denoise": 1.0}
PREVIEW = {
    "preview_every": 2,
    "preview_prompt": "[name], (hat:1.2)",
    "preview_negative": "hair",
    "preview_width": 48,
    "preview_height": 64,
    **{f"preview_{name}": HOW[name] for name in ("seed", "steps", "cfg", "scheduler")},
    "preview_sampler": HOW["sampler_name"],
}


def stock_graph(copy: str) -> dict:
    """The picture that stock nodes make with a file among the embeddings."""
    return {
        "world": {"class_type": "TestLoadToyWorld", "inputs": {"folder": str(WORLD)}},
        "positive": {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": ["world", 1], "text": f"embedding:{copy}, (hat:1.2)"},
        },
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["world", 1], "text": "hair"}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 48, "height": 64, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["world", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["empty", 0],
                **HOW,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["world", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": copy}},
    }


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_previews_are_what_ksampler_makes_of_the_copies_and_cost_nothing(server, pictures):
    told = graph("shown", save_every=2, **PREVIEW)
    workflow = {"nodes": [], "links": [], "extra": {"of": "训练"}, "version": 0.4}
    outputs = server.run(told, workflow=workflow)
    folder = run_folder(server, "shown")
    embeddings = server.base / "models" / "embeddings"
    for step in (2, 4):
        copy = folder / "embeddings" / f"shown-{step}.safetensors"
        shutil.copy(copy, embeddings)
        [theirs] = server.run(stock_graph(copy.stem))["save"]["images"]
        kept = folder / "images" / f"shown-{step}.png"
        assert np.array_equal(pixels(kept), pixels(server.file(theirs)))
        with Image.open(kept) as image, Image.open(server.file(outputs["preview"]["images"][0])) as the_host_s:
            assert image.text == the_host_s.text and json.loads(image.text["workflow"]) == workflow
        in_picture = load_embedding(folder / "image_embeddings" / f"shown-{step}.png")
        assert in_picture.step == step
        assert torch.equal(in_picture.vectors["clip_l"], load_embedding(copy).vectors["clip_l"])
    kept = [folder / "images" / f"shown-{step}.png" for step in (2, 4)]

    def shown(outputs):
        return [pixels(server.file(each)) for each in outputs["preview"]["images"]]

    for given, path in zip(shown(outputs), kept, strict=True):
        assert np.array_equal(given, pixels(path))
    # The same learnt without previews.
    server.run(graph("unseen", save_every=2, preview_steps=0))
    plain = load_embedding(run_folder(server, "unseen") / "embeddings" / "unseen-4.safetensors")
    assert torch.equal(plain.vectors["clip_l"], load_embedding(embeddings / "shown-4.safetensors").vectors["clip_l"])
    # All of them come out of a run that is gone on with, also those from before.
    more = server.run(graph("shown", save_every=2, **PREVIEW) | {"train": with_steps(told["train"], 6)})
    assert len(shown(more)) == 3
    for given, before in zip(shown(more), map(pixels, kept), strict=False):
        assert np.array_equal(given, before)


def with_steps(node: dict, steps: int) -> dict:
    return {**node, "inputs": {**node["inputs"], "steps": steps}}


def test_cancelled_in_a_preview_on_the_way_it_keeps_what_was_learnt(server, pictures):
    broken = graph("shown-not", "broken", preview_every=2)
    broken["broken"] = {"class_type": "TestStopSampling", "inputs": {"model": ["world", 0], "how": "cancel"}}
    with pytest.raises(server.Error, match="interrupted"):
        server.run(broken)
    folder = run_folder(server, "shown-not")
    assert [path.name for path in (folder / "embeddings").iterdir()] == ["shown-not-2.safetensors"]
    assert not (folder / "images").exists()


def test_no_step_left_is_said_before_any_work(server, pictures):
    server.run(graph("trained", preview_steps=0))
    again = graph("again", preview_steps=0)
    again["new"] = {"class_type": "TextInvLoadEmbedding", "inputs": {"name": "trained.safetensors"}}
    with pytest.raises(server.Error, match="stands at step 4 of 4"):
        server.run(again)
    assert len(list((server.base / "output" / "textual_inversion" / "trained").iterdir())) == 1


def test_a_copy_of_a_run_is_trained_on_under_its_own_name(server, pictures):
    server.run(graph("figure", preview_steps=0))
    copy = server.base / "models" / "embeddings" / "figure-4.safetensors"
    shutil.copy(run_folder(server, "figure") / "embeddings" / "figure-4.safetensors", copy)
    more = graph("more", steps=6, preview_steps=0)
    more["new"] = {"class_type": "TextInvLoadEmbedding", "inputs": {"name": copy.name}}
    server.run(more)
    assert saved_step(server, "figure") == 6
    runs = sorted((server.base / "output" / "textual_inversion" / "figure").iterdir())
    assert [path.name for path in (runs[1] / "embeddings").iterdir()] == ["figure-6.safetensors"]


def test_the_best_step_is_an_output(server, pictures):
    best = graph("bested", steps=4, preview_steps=0, evaluate_every=2, held_out=2, learning_rate="0.01:2, 20")
    best["save"]["inputs"]["embedding"] = ["train", 3]
    server.run(best)
    folder = run_folder(server, "bested")
    _, *lines = (folder / "fixed_loss.csv").read_text().splitlines()
    losses = {int(step): float(loss) for step, loss in (line.split(",") for line in lines)}
    assert [*losses] == [0, 2, 4] and losses[2] < losses[4]
    assert saved_step(server, "bested") == 2
    copies = sorted(path.name for path in (folder / "embeddings").iterdir())
    assert copies == ["bested-2.safetensors", "bested-4.safetensors"]
    server.run(best)  # at once, from the folder
    assert saved_step(server, "bested") == 2 and run_folder(server, "bested") == folder


def test_a_folder_that_cannot_be_written_into_costs_no_output(server, pictures):
    prompt = server.post(graph("full", steps=300, save_every=1, preview_steps=0))
    root = server.base / "output" / "textual_inversion" / "full"
    while not list(root.glob("*/embeddings/*")):
        time.sleep(0.05)
    copies = run_folder(server, "full") / "embeddings"
    while not copies.is_file():  # a copy may be written in between
        shutil.rmtree(copies, ignore_errors=True)
        with suppress(OSError):
            copies.touch(exist_ok=False)
    entry = server.wait(prompt)
    assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])
    assert saved_step(server, "full") == 300
    assert server.log_text().count("cannot write into the run's folder") == 1


def test_a_training_can_be_finished_and_the_graph_goes_on(server, pictures):
    prompt = server.post(graph("finished", steps=100_000, preview_steps=0))
    root = server.base / "output" / "textual_inversion" / "finished"
    while not (found := list(root.glob("*/*.csv"))) or found[0].read_text().count("\n") < 4:
        time.sleep(0.05)

    def ask(body=b'{"node": "train"}', method="POST", **headers):
        headers = {"Content-Type": "application/json", **{key.replace("_", "-"): text for key, text in headers.items()}}
        request = urllib.request.Request(f"{server.url}/textinv/finish", body, headers, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    refused = [
        ask(method="GET", body=None),
        ask(Content_Type="text/plain"),
        ask(Origin="null"),
        ask(Sec_Fetch_Site="same-site"),
        ask(b" " * 2000),
        ask(b'{"node": "save"}'),
    ]
    assert [status for status, _ in refused] == [404, 415, 403, 403, 413, 404]
    assert "'save' is not training" in refused[-1][1]
    assert server.get("/queue")["queue_running"]

    status, said = ask()
    assert status == 200 and "node train ends after this step" in said
    assert server.wait(prompt)["status"]["status_str"] == "success"
    settings = json.loads((run_folder(server, "finished") / "settings.json").read_text())
    step = settings["ended"]["step"]
    assert 3 <= step < 100_000 and saved_step(server, "finished") == step
    assert settings["result"]["is_read"] and settings["result"]["text"] in server.log_text()
    assert ask()[0] == 404
