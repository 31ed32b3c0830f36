"""Trainings of the fake model, recorded before the training was built anew; see `tests/bits.py`.

`fp16` was since: a step that overflows is made again there, and was left out.
"""

import pytest
import torch

from tests.bits import differences
from tests.fakes import FakeModel, fake_embedding, fake_example, train
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.examples import Example
from textinv_core.training.settings import TrainSettings

LINES = ("a embedding:cat of [name]", "[name]", "look at [name] there", "[filewords] and [name]", "[name], [filewords]")


def examples() -> list[Example]:
    """Pictures of two sizes, some of them with masks."""
    sizes = [(4, 6)] * 4 + [(6, 4)] * 3
    mask = torch.linspace(0, 2, 24)
    return [fake_example(i, s, weights=mask.reshape(s) if i % 3 == 0 else None) for i, s in enumerate(sizes)]


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


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_gives_the_recorded_bits(name):
    model, changes, shuffle = TRAININGS[name]
    settings = TrainSettings(LINES, **{"steps": 10, "gradient_accumulation": 1, **changes})
    steps = list(train(model, examples(), fake_embedding(4, 3, step=2), settings, shuffle))
    bits = {"losses": torch.tensor([step.loss for step in steps], dtype=torch.float64)}
    bits |= {f"{key} {n}": rows for n in (0, -1) for key, rows in steps[n].learnt.vectors.items()}
    assert differences(f"fake-{name}", bits) == []
