"""Ids, names and types of every node: what people's workflows are made of."""

import pytest

from textinv_core.image_settings import SIDES
from textinv_core.training.preview import RANGES as PREVIEW_RANGES
from textinv_core.training.settings import RANGES

# Node id -> inputs and outputs, in order: `id: TYPE`, `?` where optional, `[]` for lists. Once landed, these stay.
SCHEMAS = {
    "TextInvLoadImages": (
        "folder: COMBO, recursive: BOOLEAN, captions: COMBO, filename_word_regex: STRING, filename_join_string: STRING,"
        " folder_text: STRING?",
        "images: IMAGE[], captions: STRING[], masks: MASK[], names: STRING[]",
    ),
    "TextInvPreprocess": (
        "images: IMAGE, captions: STRING?, masks: MASK?, width: INT, height: INT, resize: COMBO, flip: BOOLEAN",
        "images: IMAGE[], captions: STRING[], masks: MASK[]",
    ),
    "TextInvCreateEmbedding": (
        "clip: CLIP, name: STRING, init_text: STRING, vectors: INT, clip_vision: CLIP_VISION?, images: IMAGE?",
        "embedding: TEXTINV_EMBEDDING[]",
    ),
    "TextInvLoadEmbedding": ("name: COMBO", "embedding: TEXTINV_EMBEDDING"),
    "TextInvSaveEmbedding": (
        "embedding: TEXTINV_EMBEDDING, format: COMBO, overwrite: BOOLEAN, image: IMAGE?",
        "path: STRING",
    ),
    "TextInvShuffleConfig": (
        "mode: COMBO, per: COMBO, progressive_words: BOOLEAN, unlock_every: INT",
        "shuffle: TEXTINV_SHUFFLE",
    ),
    "TextInvTrainEmbedding": (
        "model: MODEL, clip: CLIP, vae: VAE, embedding: TEXTINV_EMBEDDING, images: IMAGE, captions: STRING?,"
        " masks: MASK?, shuffle: TEXTINV_SHUFFLE?, template: COMBO, custom_template: STRING?, steps: INT,"
        " learning_rate: STRING, batch_size: INT, gradient_accumulation: INT, seed: INT, preview_prompt: STRING?,"
        " preview_steps: INT?, precision: COMBO?, gradient_checkpointing: COMBO?, gradient_clipping: COMBO?,"
        " clip_at: FLOAT?, min_timestep: INT?, max_timestep: INT?, loss_weighting: COMBO?, mask_loss: BOOLEAN?,"
        " save_every: INT?, resume: COMBO?, evaluate_every: INT?, held_out: INT?, early_stop: COMBO?, patience: INT?,"
        " keep: INT?, preview_every: INT?, preview_negative: STRING?,"
        " preview_sampler: COMBO?, preview_scheduler: COMBO?, preview_cfg: FLOAT?, preview_seed: INT?,"
        " preview_width: INT?, preview_height: INT?, optimizer: COMBO?, guidance: FLOAT?",
        "embedding: TEXTINV_EMBEDDING, loss: LOSS_MAP, previews: IMAGE, best: TEXTINV_EMBEDDING",
    ),
    "TextInvApplyEmbedding": ("clip: CLIP, embedding: TEXTINV_EMBEDDING", "clip: CLIP"),
}

OPTIONS = {
    ("TextInvLoadImages", "captions"): ["auto", "sidecar", "filename", "none"],
    ("TextInvPreprocess", "resize"): ["crop", "squash", "keep"],
    ("TextInvShuffleConfig", "per"): ["sample", "occurrence", "batch"],
    ("TextInvTrainEmbedding", "precision"): ["auto", "fp32", "bf16", "fp16"],
    ("TextInvTrainEmbedding", "gradient_checkpointing"): ["auto", "on", "off"],
}


@pytest.fixture
def schemas(node_classes, input_directory):
    return {node_id: node.define_schema() for node_id, node in node_classes.items()}


def test_every_node_is_in_the_table(schemas):
    assert set(schemas) == set(SCHEMAS)


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_inputs_and_outputs(schemas, node_id):
    schema = schemas[node_id]
    inputs = ", ".join(f"{i.id}: {i.io_type}{'?' if i.optional else ''}" for i in schema.inputs)
    outputs = ", ".join(f"{o.id}: {o.io_type}{'[]' if o.is_output_list else ''}" for o in schema.outputs)
    assert (inputs, outputs) == SCHEMAS[node_id]


def test_numbers_can_be_what_the_core_takes(schemas):
    inputs = {each.id: each for each in schemas["TextInvTrainEmbedding"].inputs}
    assert {name: (inputs[name].min, inputs[name].max) for name in RANGES} == RANGES
    previews = {name: inputs[f"preview_{name}"] for name in PREVIEW_RANGES}
    assert {name: (each.min, each.max) for name, each in previews.items()} == PREVIEW_RANGES
    for side in ("width", "height"):
        [size] = (each for each in schemas["TextInvPreprocess"].inputs if each.id == side)
        assert SIDES[0] <= size.min and size.max == SIDES[1]


@pytest.mark.parametrize(("node_id", "input_id"), OPTIONS)
def test_options(schemas, node_id, input_id):
    combo = next(i for i in schemas[node_id].inputs if i.id == input_id)
    assert combo.options == OPTIONS[node_id, input_id]
    assert combo.default in combo.options


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_node_explains_itself(schemas, node_id):
    schema = schemas[node_id]
    assert node_id.startswith("TextInv")
    assert schema.node_id == node_id
    assert schema.display_name.endswith("(Textual Inversion)")
    assert schema.category == "training/textual inversion"
    assert schema.search_aliases
    for text in (schema.description, *(part.tooltip for part in (*schema.inputs, *schema.outputs))):
        assert text and " " in text and text.endswith("."), f"no sentence: {text!r}"


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_node_has_a_help_page(request, node_id):
    page = request.config.rootpath / "web" / "docs" / f"{node_id}.md"
    text = page.read_text(encoding="utf-8")
    for declared in SCHEMAS[node_id][0].split(", "):
        name = declared.split(":")[0]
        assert f"`{name}`" in text, f"{page.name} says nothing of {name}"
