"""Training on a model that has learnt something: whether the real host learns, and learns the same as the other one."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.toyworld import world
from tests.rig import PACK

pytest.importorskip("diffusers")
from tests.fakes import train
from textinv_core import load_embedding
from textinv_core.hosts.diffusers import load
from textinv_core.images import load_folder
from textinv_core.prompts import TEMPLATES
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.examples import encoded_examples
from textinv_core.training.settings import TrainSettings

TOYWORLD = PACK / "textinv_core" / "toyworld"
GRAPHS = Path(__file__).parent / "graphs"
CHARACTER = world.demo_character()


@pytest.fixture(scope="module")
def character(base) -> str:
    shutil.copytree(TOYWORLD / "pictures", base / "input" / "my_character")
    return "my_character"


def graph(character: str, text: str, example: str = "train_subject_sd15", **training) -> dict:
    """An example graph on the toy world; training: inputs of the node that trains."""
    graph = json.loads((GRAPHS / f"{example}.json").read_text())
    nodes = {node["class_type"]: node for node in graph.values()}
    nodes["CheckpointLoaderSimple"].update(class_type="TestLoadToyWorld", inputs={"folder": str(TOYWORLD)})
    nodes["TextInvLoadImages"]["inputs"]["folder"] = character
    nodes["TextInvCreateEmbedding"]["inputs"].update(name="my-character", init_text="figure")
    for kind in ("TextInvPreprocess", "EmptyLatentImage"):
        nodes[kind]["inputs"].update(width=64, height=64)
    nodes["EmptyLatentImage"]["inputs"]["batch_size"] = 8
    nodes["KSampler"]["inputs"].update(steps=15, cfg=4.0)
    nodes["TextInvTrainEmbedding"]["inputs"].update(preview_steps=0, seed=3, **training)
    positive = graph[nodes["KSampler"]["inputs"]["positive"][0]]
    positive["inputs"]["text"] = text
    negative = graph[nodes["KSampler"]["inputs"]["negative"][0]]
    negative["inputs"]["text"] = ""
    return graph


def share_right(server, graph) -> float:
    outputs = server.run(graph)
    saved = next(key for key, node in graph.items() if node["class_type"] == "SaveImage")
    pictures = [np.asarray(Image.open(server.file(reference))) for reference in outputs[saved]["images"]]
    seen = world.judge(torch.tensor(np.stack(pictures)) / 255)
    return float(np.mean([[getattr(s, part) == getattr(CHARACTER, part) for part in world.OWN_PARTS] for s in seen]))


AT_ONCE = {"batch_size": 4, "gradient_accumulation": 1, "learning_rate": "0.005"}


def test_a_character_is_learnt(server, character):
    prompt = "a photo of embedding:my-character"
    before = share_right(server, graph(character, prompt, steps=2, learning_rate="1e-9"))
    after = share_right(server, graph(character, prompt, **{**AT_ONCE, "steps": 200}))
    fast = share_right(server, graph(character, prompt, "train_fast_sd15", steps=40))
    assert before < 0.5
    assert after > 0.8
    assert fast > 0.8


def test_both_hosts_learn_the_same(server, character):
    steps = 12
    server.run(graph(character, "embedding:my-character", **{**AT_ONCE, "steps": steps}))
    [*_, run] = sorted((server.base / "output" / "textual_inversion" / "my-character").iterdir())
    with (run / "textual_inversion_loss.csv").open() as file:
        theirs = [float(row["loss"]) for row in csv.DictReader(file)]
    trained = load_embedding(run / "embeddings" / f"my-character-{steps}.safetensors")

    record = json.loads((run / "settings.json").read_text())
    host = load(TOYWORLD / "toyworld.safetensors", config=TOYWORLD)
    pictures = list(load_folder(TOYWORLD, "pictures", captions="none"))
    examples = encoded_examples(host, pictures)
    start = host.create_embedding("my-character", "figure", 2)
    settings = TrainSettings(TEMPLATES["subject"], steps=steps, seed=3, **AT_ONCE)
    with host.trainable(examples[0].latent, settings.batch_size) as model:
        done = list(train(model, examples, start, settings, ShuffleConfig(**record["shuffle"])))
    assert [step.loss for step in done] == pytest.approx(theirs, rel=1e-3)
    ours = done[-1].learnt
    moved = (ours.vectors["clip_l"] - start.vectors["clip_l"]).norm()
    assert (ours.vectors["clip_l"] - trained.vectors["clip_l"]).norm() < 0.01 * moved
