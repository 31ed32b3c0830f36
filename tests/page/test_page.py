"""The pack in the page: example graphs, nodes, help and translations are there and whole."""

import base64
import itertools
import json
import re
import shutil
import time

import pytest
import torch

from tests.page.conftest import EXAMPLES, PACK, api_graph, workflow
from textinv_core import Embedding, save_embedding

OPEN = "graph => app.loadGraphData(graph, true, true, 'example')"
MISSING = """() => app.graph.nodes
    .filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"""
BOXES = "() => app.graph.nodes.map(n => ({id: n.id, box: [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]}))"
TO_API = "async () => (await app.graphToPrompt()).output"
ADD_ALL = """ids => {
    app.graph.clear();
    ids.forEach((id, i) => {
        const node = LiteGraph.createNode(id);
        node.pos = [500 * (i % 4), 1000 * Math.floor(i / 4)];
        app.graph.add(node);
    });
}"""
PARTS = """() => Object.fromEntries(app.graph.nodes.map(n =>
    [n.type, {inputs: n.inputs.map(i => i.name), outputs: n.outputs.map(o => o.name)}]))"""
AFTER_QUEUEING = """() => app.graph.nodes.filter(n => n.type === 'TextInvTrainEmbedding')
    .flatMap(n => n.widgets.find(w => w.name === 'seed').linkedWidgets.map(w => [w.label, w.value]))"""
VALUES = "() => app.graph.nodes.map(n => [n.type, (n.widgets ?? []).map(w => [w.name, w.value])])"


def without_titles(graph: dict) -> dict:
    return {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in graph.items()}


def overlap(a, b) -> bool:
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def wait_until_drawn(page, nodes: str):
    if nodes == "nodes_2":
        page.wait_for_function("document.querySelectorAll('[data-node-id]').length >= app.graph.nodes.length")
        page.wait_for_timeout(300)  # nodes take the room that their contents need


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_opens_whole_and_is_the_graph_that_the_host_tests_run(page, either_nodes, example):
    page.evaluate(OPEN, workflow(example))
    wait_until_drawn(page, either_nodes)
    assert page.evaluate(MISSING) == []
    assert without_titles(page.evaluate(TO_API)) == without_titles(api_graph(example))
    for a, b in itertools.combinations(page.evaluate(BOXES), 2):
        assert not overlap(a["box"], b["box"]), (a, b)


def test_template_browser_lists_the_examples_and_opens_one(page, server):
    assert sorted(server.get("/api/workflow_templates")["textinv"]) == [*EXAMPLES]
    for name in EXAMPLES:
        assert server.get(f"/api/workflow_templates/textinv/{name}.json") == workflow(name)

    page.evaluate("app.graph.clear()")
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text("textinv", exact=True).first.click()
    for name in EXAMPLES:
        page.get_by_role("dialog").get_by_text(name).first.wait_for()
    page.get_by_role("dialog").get_by_text(EXAMPLES[0]).first.click()
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(workflow(EXAMPLES[0])["nodes"]))


def test_nodes_can_be_created_with_all_their_inputs_and_outputs(page, either_nodes, our_nodes):
    page.evaluate(ADD_ALL, [*our_nodes])
    wait_until_drawn(page, either_nodes)
    made = page.evaluate(PARTS)
    for node_id, info in our_nodes.items():
        inputs = {name for part in ("required", "optional") for name in info["input"].get(part, {})}
        assert set(made[node_id]["inputs"]) == inputs
        assert made[node_id]["outputs"] == info["output_name"]
    # Else a training that is queued again, after a cancel or a crash, is another one, and begins anew.
    assert page.evaluate(AFTER_QUEUEING) == [["control after generate", "fixed"]]


def test_values_are_the_same_after_saving_and_opening(page, our_nodes):
    """The page stores values by position, and drops some on opening where it takes a node for one of an old version."""
    page.evaluate(ADD_ALL, [*our_nodes])
    before = page.evaluate(VALUES)
    page.evaluate(OPEN, page.evaluate("() => app.graph.serialize()"))
    assert page.evaluate(VALUES) == before


def test_help_is_where_the_page_looks_for_it(server, our_nodes):
    for node_id, info in our_nodes.items():
        folder = info["python_module"].split(".")[1]
        text = server.get(f"/extensions/{folder}/docs/{node_id}.md").decode()
        assert text.startswith(f"# {info['display_name']}\n")


def test_page_speaks_chinese(open_page, server, our_nodes):
    translated = json.loads((PACK / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    served = server.get("/api/i18n")["zh"]["nodeDefs"]
    assert {node_id: served[node_id] for node_id in our_nodes} == translated

    page = open_page("zh-CN")
    titles = page.evaluate("ids => ids.map(id => LiteGraph.createNode(id).title)", [*our_nodes])
    assert titles == [translated[node_id]["display_name"] for node_id in our_nodes]
    assert page.errors == []
    page.close()


def test_log_has_no_complaint_about_the_pack(server):
    assert not re.search(r"(?i)(error|warning|failed).*textinv", server.log_text())


def test_a_new_embedding_is_listed_after_refreshing_and_the_chosen_one_stays(page, either_nodes, server):
    """A workflow keeps the file it names, in the list or not; R, the host's own refresh, brings new files."""
    folder = server.base / "models" / "embeddings"
    first, second = f"{either_nodes}-a.pt", f"{either_nodes}-b.safetensors"
    (folder / first).touch()
    page.evaluate("app.refreshComboInNodes()")
    page.evaluate(ADD_ALL, ["TextInvLoadEmbedding", "TextInvLoadEmbedding"])
    page.evaluate("app.graph.nodes[0].widgets[0].value = 'not-there.safetensors'")
    page.evaluate(OPEN, page.evaluate("() => app.graph.serialize()"))
    wait_until_drawn(page, either_nodes)
    chosen = page.evaluate(VALUES)
    assert chosen[0] == ["TextInvLoadEmbedding", [["name", "not-there.safetensors"]]]
    assert second not in page.evaluate("app.graph.nodes[1].widgets[0].options.values")

    (folder / second).touch()
    page.locator("#graph-canvas").press("r")
    page.wait_for_function("name => app.graph.nodes[1].widgets[0].options.values.includes(name)", arg=second)
    assert first in page.evaluate("app.graph.nodes[1].widgets[0].options.values")
    assert page.evaluate(VALUES) == chosen


def test_a_saved_embedding_says_on_the_node_how_it_is_used(page, either_nodes, server):
    name = f"{either_nodes}-saved"
    save_embedding(Embedding(name, {"clip_l": torch.ones(1, 768)}), server.base / "models/embeddings" / f"{name}.pt")
    page.evaluate(ADD_ALL, ["TextInvLoadEmbedding", "TextInvSaveEmbedding"])
    page.evaluate(f"""() => {{
        const [load, save] = app.graph.nodes;
        load.widgets[0].value = "{name}.pt";
        load.connect(0, save, 0);
        app.queuePrompt(0);
    }}""")
    # Without overwriting: of two files of one name prompts would find one.
    shown = "text => app.graph.nodes[1].widgets.some(w => `${w.value}`.startsWith(text))"
    page.wait_for_function(shown, arg=f"Saved as embedding:{name}_2")


DROP = """([data, name]) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type: 'image/png'}));
    const to = document.querySelector('#graph-canvas');
    to.dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: transfer}));
}"""


def test_a_preview_that_is_dropped_on_the_page_opens_the_graph_that_made_it(page, server):
    folder = PACK / "textinv_core" / "toyworld"
    shutil.copytree(folder / "pictures", server.base / "input" / "my_figure")
    load = {"folder": "my_figure", "recursive": False, "captions": "none", "filename_word_regex": "",
            "filename_join_string": " "}  # fmt: skip
    told = {"template": "subject", "steps": 2, "learning_rate": "0.01", "batch_size": 2, "gradient_accumulation": 1}
    told |= {"seed": 0, "preview_prompt": "[name], a hat", "preview_steps": 2}
    graph = {
        "1": {"class_type": "TestLoadToyWorld", "inputs": {"folder": str(folder)}},
        "2": {"class_type": "TextInvLoadImages", "inputs": load},
        "3": {
            "class_type": "TextInvCreateEmbedding",
            "inputs": {"clip": ["1", 1], "name": "dropped", "init_text": "figure", "vectors": 2},
        },
        "4": {
            "class_type": "TextInvTrainEmbedding",
            "inputs": {
                **{"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "embedding": ["3", 0], "images": ["2", 0]},
                **told,
            },
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 2]}},
    }
    page.evaluate("graph => app.loadApiJson(graph, 'made')", graph)
    page.evaluate("app.graph.nodes.forEach(n => { n.title = `of mine ${n.type}`; })")  # what only a workflow keeps
    before = page.evaluate(TO_API)
    page.evaluate("app.queuePrompt(0)")
    run = server.base / "output" / "textual_inversion" / "dropped"
    deadline = time.monotonic() + 120
    while not (pictures := [*run.glob("*/images/dropped-2.png")]):
        assert time.monotonic() < deadline, server.log_text()[-2000:]
        time.sleep(0.2)

    page.evaluate("app.graph.clear()")
    page.evaluate(DROP, [base64.b64encode(pictures[0].read_bytes()).decode(), "dropped-2.png"])
    page.wait_for_function("count => app.graph.nodes.length === count", arg=len(graph))
    assert page.evaluate(TO_API) == before
    assert before["4"]["_meta"]["title"] == "of mine TextInvTrainEmbedding"
