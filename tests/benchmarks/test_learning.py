"""The shipped weights draw what they are told, and learn: what tells a training that learns from one that runs."""

import pytest

pytest.importorskip("diffusers")
from benchmarks.lessons import Lesson, accuracy, model, teach
from benchmarks.toyworld.accuracy import findings


def test_what_prompts_say_comes_out():
    right = findings(model(), 50)
    assert len(right["parts"]) > 150
    assert sum(right["parts"]) >= 0.95 * len(right["parts"])


def test_a_character_is_learnt_from_eight_pictures():
    settings = {"learning_rate": "0.005", "batch_size": 4}
    before, after = teach(Lesson(0, settings=settings, looks=(1, 100)))
    assert accuracy(before) < 0.5
    assert accuracy(after) > 0.85
