"""The training node in the real host, on the toy world: what is red before anything runs, and what a run survives."""

import json
import shutil
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rig import PACK
from textinv_core import load_embedding

WORLD = PACK / "textinv_core" / "toyworld"
LOAD = {"folder": "my_figure", "recursive": False, "captions": "none", "filename_word_regex": "",
        "filename_join_string": " "}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(base) -> Path:
    folder = base / "input" / "my_figure"
    shutil.copytree(WORLD / "pictures", folder)
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
