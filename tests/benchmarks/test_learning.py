"""The shipped weights draw what they are told, and learn: what tells a training that learns from one that runs."""

from dataclasses import replace

import pytest

pytest.importorskip("diffusers")
from benchmarks.learning import lesson
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


def test_the_fast_preset_has_learnt_when_the_usual_one_has_just_begun():
    fast, usual = (replace(lesson(recipe, "subject", 20, 0), looks=(32,)) for recipe in ("preset fast", "preset"))
    assert accuracy(teach(fast)[0]) > 0.85
    assert accuracy(teach(usual)[0]) < 0.7
