"""The training node, as far as it goes without a model."""

import json
import sys
from types import SimpleNamespace

import pytest

from tests.rig import PACK
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.presets import PRESETS


@pytest.fixture
def train(node_classes):
    return sys.modules[node_classes["TextInvTrainEmbedding"].__module__]


def test_previews_have_the_graph_in_them_unless_the_host_keeps_it_out(train, monkeypatch):
    graph, workflow = {"1": {"class_type": "KSampler"}}, {"nodes": ["词"]}
    hidden = SimpleNamespace(prompt=graph, extra_pnginfo={"workflow": workflow, "more": 1})
    texts = train._metadata(hidden)
    assert {name: json.loads(text) for name, text in texts.items()} == {
        "prompt": graph,
        "workflow": workflow,
        "more": 1,
    }
    assert train._metadata(SimpleNamespace(prompt=graph, extra_pnginfo=None)) == {"prompt": json.dumps(graph)}
    monkeypatch.setattr(train.args, "disable_metadata", True)
    assert train._metadata(hidden) == {}


def test_inputs_that_old_graphs_lack_have_the_node_s_own_defaults(train):
    preview = train._preview({"preview_steps": 5, "preview_cfg": 3.0, "steps": 9, "seed": 4})
    assert preview == train.Preview(steps=5, cfg=3.0)
    assert (preview.every, preview.seed) == (0, 0)


@pytest.mark.parametrize(("example", "name"), [("train_fast_sd15", "fast"), ("train_fast_style_sd15", "fast-style")])
def test_the_fast_examples_are_the_presets(train, example, name):
    graph = json.loads((PACK / "tests" / "host" / "graphs" / f"{example}.json").read_text())
    nodes = {node["class_type"]: node["inputs"] for node in graph.values()}
    settings = train._settings(nodes["TextInvTrainEmbedding"])
    preset = PRESETS[name]
    assert settings == train.TrainSettings(settings.template, **preset["train"])
    assert nodes["TextInvTrainEmbedding"]["template"] == preset["template"][0]
    assert nodes["TextInvCreateEmbedding"]["vectors"] == preset["vectors"]
    assert nodes["TextInvShuffleConfig"]["mode"] == ShuffleConfig().mode
