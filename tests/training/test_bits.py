"""Trainings of the fake model and of small pipelines, recorded before the training was built anew; see `tests/bits.py`."""

import pytest
import torch

from tests.bits import differences
from tests.training.conftest import WIDTHS, FakeModel, fixed
from textinv_core.dataset import Example
from textinv_core.embedding import Embedding
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.loop import train
from textinv_core.training.settings import TrainSettings

LINES = ("a embedding:cat of [name]", "[name]", "look at [name] there", "[filewords] and [name]", "[name], [filewords]")


def examples() -> list[Example]:
    """Pictures of two sizes, some of them with masks."""
    colour = torch.tensor([1.0, -0.5, 0.3])[:, None, None]
    sizes = [(4, 6)] * 4 + [(6, 4)] * 3
    mask = torch.linspace(0, 2, 24)
    return [
        Example(
            colour + 0.2 * fixed(10 + i, 3, *size).float(), f"picture-{i}", mask.reshape(size) if i % 3 == 0 else None
        )
        for i, size in enumerate(sizes)
    ]


def embedding() -> Embedding:
    rows = {key: 0.3 * fixed(4, n, WIDTHS[key]).float() for key, n in (("clip_l", 4), ("clip_g", 3))}
    return Embedding("cat", rows, 2)


def spoilt(prediction, call):
    """A gradient that is too large for fp16 in one call."""
    prediction = 0.005 * prediction + 0.995 * prediction.detach()
    if call == 5:
        prediction.register_hook(lambda gradient: gradient * float("inf"))
    return prediction


TRAININGS = {
    "plain": (FakeModel(), {}, None),
    "shuffled": (
        FakeModel(),
        {"batch_size": 2, "gradient_accumulation": 3, "seed": 7},
        ShuffleConfig("all", "occurrence"),
    ),
    "batch": (FakeModel(), {"batch_size": 4, "seed": 8}, ShuffleConfig("dynamic", "batch")),
    "weighted": (
        FakeModel(),
        {
            "batch_size": 3,
            "loss_weighting": "min_snr",
            "gradient_clipping": "norm",
            "clip_at": 0.05,
            "min_timestep": 100,
        },
        ShuffleConfig("between"),
    ),
    "clipped": (FakeModel(), {"gradient_clipping": "value", "clip_at": 0.01, "learning_rate": "0.01:5, 0.001"}, None),
    "bf16": (FakeModel(torch.bfloat16), {"batch_size": 2}, None),
    "fp16": (FakeModel(torch.float16, spoilt), {"batch_size": 2, "gradient_accumulation": 2}, ShuffleConfig("all")),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums are rounded otherwise with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_gives_the_recorded_bits(name):
    model, told, shuffle = TRAININGS[name]
    settings = TrainSettings(LINES, **{"steps": 10, "gradient_accumulation": 1, **told})
    steps = list(train(model, examples(), embedding(), settings, shuffle))
    found = {"losses": torch.tensor([step.loss for step in steps], dtype=torch.float64)}
    found |= {f"{key} {n}": rows for n in (0, -1) for key, rows in steps[n].embedding().vectors.items()}
    assert differences(f"fake-{name}", found) == []
