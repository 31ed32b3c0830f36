"""Ids, names and types of every node: what people's workflows are made of."""

import pytest

# Node id -> inputs and outputs, in order: (id, io type, traits). Once landed, these stay.
SCHEMAS = {
    "TextInvLoadImages": (
        [
            ("folder", "COMBO", ""),
            ("recursive", "BOOLEAN", ""),
            ("captions", "COMBO", ""),
            ("filename_word_regex", "STRING", ""),
            ("filename_join_string", "STRING", ""),
            ("folder_text", "STRING", "optional"),
        ],
        [
            ("images", "IMAGE", "list"),
            ("captions", "STRING", "list"),
            ("masks", "MASK", "list"),
            ("names", "STRING", "list"),
        ],
    ),
    "TextInvPreprocess": (
        [
            ("images", "IMAGE", ""),
            ("captions", "STRING", "optional"),
            ("masks", "MASK", "optional"),
            ("width", "INT", ""),
            ("height", "INT", ""),
            ("resize", "COMBO", ""),
            ("flip", "BOOLEAN", ""),
        ],
        [("images", "IMAGE", "list"), ("captions", "STRING", "list"), ("masks", "MASK", "list")],
    ),
}

OPTIONS = {
    ("TextInvLoadImages", "captions"): ["auto", "sidecar", "filename", "none"],
    ("TextInvPreprocess", "resize"): ["crop", "squash", "keep"],
}


@pytest.fixture
def schemas(node_classes, input_directory):
    return {node_id: node.define_schema() for node_id, node in node_classes.items()}


def test_every_node_is_in_the_table(schemas):
    assert set(schemas) == set(SCHEMAS)


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_inputs_and_outputs(schemas, node_id):
    schema, (inputs, outputs) = schemas[node_id], SCHEMAS[node_id]
    assert [(i.id, i.io_type, "optional" if i.optional else "") for i in schema.inputs] == inputs
    assert [(o.id, o.io_type, "list" if o.is_output_list else "") for o in schema.outputs] == outputs


@pytest.mark.parametrize(("node_id", "input_id"), OPTIONS)
def test_options(schemas, node_id, input_id):
    combo = next(i for i in schemas[node_id].inputs if i.id == input_id)
    assert combo.options == OPTIONS[node_id, input_id]
    assert combo.default in combo.options


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_node_explains_itself(schemas, node_id):
    schema = schemas[node_id]
    assert node_id.startswith("TextInv")
    assert schema.display_name.endswith("(Textual Inversion)")
    assert schema.category == "training/textual inversion"
    assert schema.search_aliases
    for text in (schema.description, *(part.tooltip for part in (*schema.inputs, *schema.outputs))):
        assert text and text[0].isupper() and text.endswith("."), f"no sentence: {text!r}"


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_node_has_a_help_page(request, node_id):
    page = request.config.rootpath / "web" / "docs" / f"{node_id}.md"
    text = page.read_text(encoding="utf-8")
    for name, _, _ in SCHEMAS[node_id][0]:
        assert f"`{name}`" in text, f"{page.name} says nothing of {name}"
