"""The shipped weights draw what they are told, and learn: what tells a training that learns from one that runs."""

import pytest

pytest.importorskip("diffusers")
import accuracy as toyworld
from lessons import Lesson, accuracy, pipeline, teach


def test_what_prompts_say_comes_out():
    found = toyworld.findings(pipeline(), 50)
    assert len(found["parts"]) > 150
    assert sum(found["parts"]) >= 0.95 * len(found["parts"])


def test_a_character_is_learnt_from_eight_pictures():
    settings = {"learning_rate": "0.005", "batch_size": 4}
    before, after = teach(Lesson(0, settings=settings, looks=(1, 100)))
    assert accuracy(before) < 0.5
    assert accuracy(after) > 0.85
