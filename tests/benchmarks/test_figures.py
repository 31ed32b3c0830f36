"""The arithmetic behind the published tables."""

import math

import numpy as np
import pytest

pytest.importorskip("diffusers")
from benchmarks.crosstalk import confusion, crossed, of_halves
from benchmarks.learning import cells
from benchmarks.lessons import Lesson, accuracy
from benchmarks.tables import interval, percent, table, until
from benchmarks.toyworld import world

OWN = [0, 1, 2, 3, 4]  # colours of hair, eyes, shirt, trousers, hat
BARE = [0, 1, 2, 3, None]


def look(*shown, own=OWN, far=0.0):
    """What `judge` says of pictures in which the parts have these colours."""
    colours = {"own": own, "shown": [list(each) for each in shown], "far": [[far] * len(own)] * len(shown)}
    return {**colours, "edited": [True, False], "kept": [1.0, 0.5]}


def test_accuracy_counts_parts():
    assert accuracy(look(OWN, [0, 1, 2, 3, 7])) == 0.9
    assert accuracy(look(BARE, [0, 1, 2, 3, 4], own=BARE)) == 0.9


def test_crossed_is_another_parts_colour_and_no_other_mistake():
    assert crossed(look(OWN)) == 0
    assert crossed(look([0, 7, 2, 3, 4])) == 0
    assert crossed(look([0, 1, 2, 3, None])) == 0
    assert crossed(look(OWN, [1, 1, 2, 3, 4])) == 0.5
    assert crossed(look([1, 0, 2, 3, 4])) == 1
    assert crossed(look([0, 1, 2, 3, 2], own=BARE)) == 1
    assert crossed(look([0, 1, 2, 3, 7], own=BARE)) == 0
    assert crossed(look([1, 1, 2, 3, 4], far=44.0)) == 1
    assert crossed(look([1, 1, 2, 3, 4], far=46.0)) == 0  # a muddled colour is nobody's


def test_confusion_has_shares_in_rows():
    table = confusion([look(OWN, [1, 1, 2, 3, 7]), look([0, 1, 2, 3, None])])
    assert np.allclose(table.sum(1), 1)
    assert table[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0, 0, 0])
    assert table[4].tolist() == pytest.approx([0, 0, 0, 0, 1 / 3, 2 / 3])


def test_halves_are_averaged_and_one_vector_is_whole():
    halves = {**look(OWN), "halves": [look(OWN), look([7] * 5)]}
    assert of_halves(accuracy)(halves) == 0.5
    assert of_halves(accuracy)(look([0, 1, 2, 3, 7])) == 0.8


def test_intervals_take_characters_and_seeds_as_a_whole():
    alike = np.repeat([[0.0], [1.0]], 100, axis=1)  # two characters, a hundred lessons each
    assert interval(alike) == (0.5, 0, 1)
    assert interval(alike.T) == (0.5, 0, 1)  # a hundred characters, two seeds
    assert interval([[0.3, 0.3], [0.3, 0.3]]) == pytest.approx((0.3, 0.3, 0.3))


def test_lessons_that_never_get_there():
    assert until([[50, 50], [50, 50]]) == "50 (50 to 50)"
    assert until([[math.inf], [math.inf], [math.inf]]) == "never (never to never)"


def test_shares_are_shown_in_percent_with_their_interval():
    assert percent([[0.254, 0.254]] * 3) == "25 (25 to 25)"
    assert percent([[0.1], [-0.06]], sign=True) == "+2 (-6 to +10)"
    assert percent([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.median) == "50 (0 to 100)"


def test_tables_are_markdown():
    lines = ["|  | right |", "|---|---|", "| parts | 3 |", "| hat |  |"]
    assert table(["", "right"], [["parts", 3], ["hat", ""]]).splitlines() == lines


def test_a_row_of_the_table():
    early = {**look([0, 1, 2, 3, 7]), "step": 50, "seconds": 1.0}
    late = {**look(OWN), "step": 100, "seconds": 2.5}
    lessons = [[[early, late]], [[early, {**late, "seconds": 3.5}]]]
    shown = ["100", "100 (100 to 100)", "50 (50 to 50)", "75 (75 to 75)"]
    reached = ["100 (100 to 100)", "2.5 (2.5 to 2.5)", "2/2"]
    assert cells(lessons, lessons) == [*shown, "", "", *reached]
    worse = [[[{**late, **look([0, 1, 2, 7, 7]), "edited": [False]}]]] * 2
    assert cells(lessons, worse) == [*shown, "+40 (+40 to +40)", "+50 (+50 to +50)", *reached]


@pytest.mark.parametrize("kind", ["subject", "style"])
def test_a_lesson_shows_what_is_to_be_learnt_and_asks_for_something_else(kind):
    for character in range(10):
        lesson = Lesson(character, kind, seed=character)
        scenes = lesson.scenes()
        assert len({*scenes}) == 8
        assert all(getattr(scene, part) == colour for scene in scenes for part, colour in lesson.own.items())
        for words, part, colour in lesson.edits:
            assert words == f"{world.COLOUR_NAMES[colour]} {part}"
            assert kind == "style" or colour not in {getattr(scene, part) for scene in scenes}
            assert lesson.own.get(part) != colour
        others = [part for part in ("hair", "eyes", "position") if part not in lesson.own]
        assert all(len({getattr(scene, part) for scene in scenes}) > 1 for part in others)
