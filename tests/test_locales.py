"""Translations name exactly what there is, so that none is missing or left over when a node changes."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "locales"
LOCALES = sorted(path.parent.name for path in FOLDER.glob("*/nodeDefs.json"))


@pytest.fixture(params=LOCALES)
def translated(request) -> dict:
    return json.loads((FOLDER / request.param / "nodeDefs.json").read_text(encoding="utf-8"))


def test_chinese_is_there():
    assert "zh" in LOCALES


def test_nodes_inputs_and_outputs_are_those_that_exist(translated, node_classes, input_directory):
    schemas = {node_id: node.define_schema() for node_id, node in node_classes.items()}
    assert translated.keys() == schemas.keys()
    for node_id, schema in schemas.items():
        node = translated[node_id]
        assert list(node["inputs"]) == [i.id for i in schema.inputs], node_id
        assert list(node["outputs"]) == [str(i) for i in range(len(schema.outputs))], node_id


def test_every_text_is_there_and_plain(translated):
    for node_id, node in translated.items():
        assert node.keys() == {"display_name", "description", "inputs", "outputs"}
        parts = [*node["inputs"].values(), *node["outputs"].values()]
        assert all(part.keys() == {"name", "tooltip"} for part in parts), node_id
        for text in (node["display_name"], node["description"], *(text for part in parts for text in part.values())):
            assert text.strip()
            # The page would read these as placeholders, links and plurals.
            assert not re.search(r"[{}@|]", text), text


def test_options_keep_their_names(translated, node_classes, input_directory):
    """The page shows options as they are, so a tooltip that explains them has to name them as they are."""
    for node_id, node in node_classes.items():
        for given in node.define_schema().inputs:
            tooltip = translated[node_id]["inputs"][given.id]["tooltip"]
            for option in getattr(given, "options", None) or []:
                if len(option) > 3 and option in given.tooltip:  # "on" and the like are words of their own, too
                    assert option in tooltip, (node_id, given.id)
