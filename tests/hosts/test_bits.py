"""Trainings on the toy world, recorded before the training was built anew; see `tests/bits.py`."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from tests.bits import differences
from textinv_core.dataset import encoded_examples
from textinv_core.embedding import create_embedding
from textinv_core.hosts import diffusers as host
from textinv_core.images import load_folder
from textinv_core.prompts import TEMPLATES
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.loop import train
from textinv_core.training.settings import TrainSettings

WORLD = Path(__file__).parents[2] / "textinv_core" / "toyworld"
PLAIN = {"batch_size": 2, "gradient_accumulation": 2, "learning_rate": "0.005", "seed": 3}
TRAININGS = {
    "plain": (torch.float32, TEMPLATES["subject"], PLAIN, ShuffleConfig("all")),
    "weighted": (
        torch.float32,
        ("(a [name]:1.3) [filewords]", "[name] " + "small " * 50, "[name] and (no [filewords]:0.7)"),
        PLAIN | {"loss_weighting": "min_snr", "gradient_clipping": "norm", "gradient_checkpointing": "on"},
        None,
    ),
    "bf16": (torch.bfloat16, TEMPLATES["style_filewords"], PLAIN, ShuffleConfig("dynamic", "occurrence")),
    "fp16": (torch.float16, TEMPLATES["subject"], PLAIN, None),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_gives_the_recorded_bits(name):
    dtype, template, told, shuffle = TRAININGS[name]
    pipe = host.load(WORLD / "toyworld.safetensors", WORLD, dtype=dtype)
    loaded = load_folder(WORLD, "pictures")
    masks = [torch.linspace(0, 1, 64).expand(64, 64) if i == 2 else mask for i, mask in enumerate(loaded.masks)]
    found = encoded_examples(loaded.images, loaded.captions, masks, 8, lambda images: host.encode_images(pipe, images))
    start = create_embedding("cat", host.text_vectors(pipe, "figure"), 3, True)
    with host.trainable(pipe) as model:
        steps = list(train(model, found, start, TrainSettings(template, 4, **told), shuffle))
    found = {"losses": torch.tensor([step.loss for step in steps], dtype=torch.float64)}
    found |= {f"{key} {n}": rows for n in (0, -1) for key, rows in steps[n].embedding().vectors.items()}
    assert differences(f"diffusers-{name}", found) == []
