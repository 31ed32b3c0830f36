"""Trainings on the toy world, recorded before the training was built anew; see `tests/bits.py`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")


from tests.bits import differences
from tests.fakes import train
from textinv_core.hosts.diffusers import load
from textinv_core.images import load_folder
from textinv_core.prompts import TEMPLATES
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.examples import encoded_examples
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


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_gives_the_recorded_bits(name):
    dtype, template, settings, shuffle = TRAININGS[name]
    host = load(WORLD / "toyworld.safetensors", WORLD, dtype=dtype)
    pictures = list(load_folder(WORLD, "pictures"))
    pictures[2] = replace(pictures[2], mask=torch.linspace(0, 1, 64).expand(64, 64))
    examples = encoded_examples(host, pictures)
    start = host.create_embedding("cat", "figure", 3)
    with host.trainable(examples[0].latent, 2) as model:
        steps = list(train(model, examples, start, TrainSettings(template, 4, **settings), shuffle))
    found = {"losses": torch.tensor([step.loss for step in steps], dtype=torch.float64)}
    found |= {f"{key} {n}": rows for n in (0, -1) for key, rows in steps[n].learnt.vectors.items()}
    assert differences(f"diffusers-{name}", found) == []
