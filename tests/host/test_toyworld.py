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
from textinv_core import load_embedding
from textinv_core.dataset import encoded_examples
from textinv_core.embedding import create_embedding
from textinv_core.hosts import diffusers as other_host
from textinv_core.images.load import load_image
from textinv_core.prompts import TEMPLATES
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.loop import train
from textinv_core.training.settings import TrainSettings

TOYWORLD = PACK / "textinv_core" / "toyworld"
EXAMPLE = Path(__file__).parent / "graphs" / "train_subject_sd15.json"
CHARACTER = world.held_out_characters(9)[8]  # whom the bundled pictures show
PARTS = ("hair", "eyes", "shirt", "trousers", "hat")


@pytest.fixture(scope="module")
def character(base) -> str:
    shutil.copytree(TOYWORLD / "pictures", base / "input" / "my_character")
    return "my_character"


def graph(character: str, steps: int, text: str, rate: str = "0.005") -> dict:
    """The example graph on the toy world."""
    graph = json.loads(EXAMPLE.read_text())
    nodes = {node["class_type"]: node for node in graph.values()}
    nodes["CheckpointLoaderSimple"].update(class_type="TestLoadToyWorld", inputs={"folder": str(TOYWORLD)})
    nodes["TextInvLoadImages"]["inputs"]["folder"] = character
    nodes["TextInvCreateEmbedding"]["inputs"].update(name="my-character", init_text="figure", vectors=4)
    for kind in ("TextInvPreprocess", "EmptyLatentImage"):
        nodes[kind]["inputs"].update(width=64, height=64)
    nodes["EmptyLatentImage"]["inputs"]["batch_size"] = 8
    nodes["KSampler"]["inputs"].update(steps=15, cfg=4.0)
    nodes["TextInvTrainEmbedding"]["inputs"].update(
        steps=steps,
        batch_size=4,
        gradient_accumulation=1,
        learning_rate=rate,
        preview_steps=0,
        seed=3,
    )
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
    return float(np.mean([[getattr(s, part) == getattr(CHARACTER, part) for part in PARTS] for s in seen]))


def test_a_character_is_learnt(server, character):
    before = share_right(server, graph(character, 2, "a photo of embedding:my-character", rate="1e-9"))
    after = share_right(server, graph(character, 200, "a photo of embedding:my-character"))
    assert before < 0.5
    assert after > 0.8


def test_both_hosts_learn_the_same(server, character):
    steps = 12
    server.run(graph(character, steps, "embedding:my-character"))
    [*_, run] = sorted((server.base / "output" / "textual_inversion" / "my-character").iterdir())
    with (run / "textual_inversion_loss.csv").open() as file:
        theirs = [float(row["loss"]) for row in csv.DictReader(file)]
    trained = load_embedding(run / "embeddings" / f"my-character-{steps}.safetensors")

    told = json.loads((run / "settings.json").read_text())
    pipe = other_host.load(TOYWORLD / "toyworld.safetensors", config=TOYWORLD)
    pictures = [load_image(path)[0] for path in sorted((TOYWORLD / "pictures").iterdir())]
    examples = encoded_examples(
        pictures, [""] * 8, [torch.ones(64, 64)] * 8, 8, lambda images: other_host.encode_images(pipe, images)
    )
    start = create_embedding("my-character", other_host.text_vectors(pipe, "figure"), 4, True)
    told_both = {"steps": steps, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": "0.005", "seed": 3}
    settings = TrainSettings(TEMPLATES["subject"], **told_both)
    with other_host.trainable(pipe) as model:
        progress = [
            (p.loss, p.embedding()) for p in train(model, examples, start, settings, ShuffleConfig(**told["shuffle"]))
        ]
    assert [loss for loss, _ in progress] == pytest.approx(theirs, rel=1e-3)
    ours = progress[-1][1]
    moved = (ours.vectors["clip_l"] - start.vectors["clip_l"]).norm()
    assert (ours.vectors["clip_l"] - trained.vectors["clip_l"]).norm() < 0.01 * moved
