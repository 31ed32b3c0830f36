"""The arithmetic behind the published tables."""

import math

import numpy as np
import pytest

pytest.importorskip("diffusers")
from benchmarks import learning
from benchmarks.crosstalk import confusion, crossed, of_halves
from benchmarks.lessons import Lesson, accuracy
from benchmarks.stopping import best, course, early, judged_best, last, lowest_training_loss, rank_correlation
from benchmarks.sweeps import cells
from benchmarks.tables import interval, percent, table, times, until
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


# Recipes


def learnt(*right, pace=0.1, edited=True):
    """Looks of a lesson every 10 steps of so many seconds each; right: of ten parts."""
    looks = []
    for n, of_ten in enumerate(right, 1):
        pictures = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
        wrong = [(place // 5, place % 5) for place in range(10 - of_ten)]
        for picture, part in wrong:
            pictures[picture][part] = 1
        looks.append({"step": 10 * n, "seconds": 10 * n * pace, "own": [0] * 5, "shown": pictures})
        looks[-1] |= {"edited": [edited], "kept": [of_ten / 10]}
    return looks


def test_how_many_times_quicker():
    assert times([[2, 2], [2, 2]], [[10, 10], [10, 10]]) == "5.0 (5.0 to 5.0)"
    assert times([[2], [2]], [[math.inf], [math.inf]]) == "many (many to many)"
    assert times([[math.inf], [math.inf]], [[2], [2]]) == ""
    # Where of three characters neither gets to one, a resample of that one alone does not make it any quicker.
    assert times([[2], [2], [math.inf]], [[10], [10], [math.inf]]) == "5.0 (0.0 to 5.0)"


def test_a_row_of_recipes():
    quick = [[learnt(8, 9, 10, pace=0.2)], [learnt(8, 9, 10, pace=0.4)]]
    slow = [[learnt(2, 7, 8, pace=1.0, edited=False)], [learnt(2, 7, 8, pace=1.0, edited=False)]]
    row = dict(zip(learning.SOON, learning.how_soon(quick, slow, 4), strict=True))
    assert row["75% at"] == "40 (40 to 40) [2/2]"
    assert row["90% at"] == "80 (80 to 80) [2/2]"
    assert row["95% at"] == "120 (120 to 120) [2/2]"
    assert row["seconds to 90 %"] == "4 (4 to 4)"  # at the pace of the quickest
    assert row["times as quick"] == "many (many to many)"
    assert (row["edited there"], row["kept there"]) == ("100", "90")
    row = dict(zip(learning.END, learning.in_the_end(quick, slow, 4), strict=True))
    assert (row["pictures"], row["right"]) == ("120", "100 (100 to 100)")
    assert row["right - preset"] == "+20 (+20 to +20)"
    assert row["edited - preset"] == "+100 (+100 to +100)"
    row = dict(zip(learning.SOON, learning.how_soon(slow, slow, 1), strict=True))
    assert row["90% at"] == "never (never to never) [0/2]"
    assert row["seconds to 90 %"] == "never (never to never)"
    assert row["edited there"] == row["times as quick"] == ""


def test_a_curve_has_what_all_lessons_were_asked():
    lessons = [[learnt(8, 9, 10)], [learnt(6, 7, 8)]]
    del lessons[0][0][1]["edited"]
    seconds, right = learning.curve("right", lessons)
    assert seconds == pytest.approx([1, 2, 3]) and right == pytest.approx([70, 80, 90])
    seconds, edited = learning.curve("edited", lessons)
    assert seconds == pytest.approx([1, 3]) and edited == [100, 100]


@pytest.mark.parametrize(("recipe", "kind"), [(name, kind) for name, of in learning.RECIPES.items() for kind in of])
def test_recipes_are_taught_the_same_lessons(recipe, kind):
    one, other = (learning.lesson(each, kind, 20, 1) for each in (recipe, "A1111"))
    assert one.scenes() == other.scenes() and one.edits == other.edits
    pictures = one.settings["batch_size"] * one.looks[-1]
    assert pictures == learning.UNTIL[kind].get(recipe.partition(",")[0], learning.OTHERS_UNTIL[kind])
    assert 5 <= len(one.looks) == len({*one.looks})


def test_no_character_is_in_both_sets_or_in_other_tables():
    sets = [{*learning.SETS[name][kind]} for name in learning.SETS for kind in ("subject", "style")]
    development, held_out = sets[0] | sets[1], sets[2] | sets[3]
    assert not development & held_out and min(development | held_out) >= 10
    assert len(sets[2]) >= 12 and len(sets[3]) >= 6


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


# Stopping


def went(fixed, single, right, start=1.0):
    """Looks of a lesson evaluated at each, every 10 steps; right: of four pictures with one part, as 0 and 1."""
    looks = []
    for n, (f, s, pictures) in enumerate(zip(fixed, single, right, strict=True), 1):
        judged = {"own": [0], "shown": [[1 - r] for r in pictures], "edited": pictures, "kept": pictures}
        evaluated = [[0, start, None]] * (n == 1) + [[10 * n, f, s]]
        looks.append({"step": 10 * n, "evaluated": evaluated, **judged})
    return course(looks)


def test_rules_take_the_step_they_go_by():
    right = [[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    one = went([0.5, 0.3, 0.4, 0.35], [0.4, 0.3, 0.35, 0.2], right)
    assert one.fixed.tolist() == [1.0, 0.5, 0.3, 0.4, 0.35]
    taken = {rule: rule(one) for rule in (last, best, lowest_training_loss, judged_best)}
    assert {rule.__name__: each.step for rule, each in taken.items()} == {
        "last": 40, "best": 20, "lowest_training_loss": 40, "judged_best": 25
    }  # fmt: skip
    assert taken[last].figures.tolist() == [0.75] * 3
    assert taken[best].figures.tolist() == [0.5] * 3
    # Pictures 0 and 2 are right from step 20 on, where 1 and 3 are wrong; these are right at step 30 alone.
    assert taken[judged_best].figures.tolist() == [0.5] * 3
    assert {each.end for each in taken.values()} == {40}


def test_a_rule_that_stops_sees_nothing_after():
    right = [[0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    one = went([0.5, 0.3, 0.4, 0.1], [0.4, 0.3, 0.35, 0.2], right)
    stops = early(best, lambda losses: losses[-1] > min(losses))
    assert (stops(one).step, stops(one).end) == (20, 30)
    assert (early(last, lambda losses: False)(one).step, early(last, lambda losses: False)(one).end) == (40, 40)


def test_figures_between_looks_are_interpolated():
    wrong = {"own": [0], "shown": [[1]] * 2, "edited": [False] * 2, "kept": [0.0] * 2}
    right = {"own": [0], "shown": [[0]] * 2, "edited": [True] * 2, "kept": [1.0] * 2}
    first, *others = [[0, 1.0, None], [10, 0.5, 0.5], [20, 0.4, 0.5], [30, 0.4, 0.5], [40, 0.4, 0.5]]
    one = course([
        {"step": 10, "evaluated": [first, others[0]], **wrong},
        {"step": 40, "evaluated": others[1:], **right},
    ])  # fmt: skip
    assert one.score.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_rank_correlation_is_of_ranks():
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([0, 1, 10, 100])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([5, 5, 5, 5])) == 0
    # By hand: ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4.
    assert rank_correlation(np.array([1, 2, 2, 4]), np.array([2, 1, 3, 9])) == pytest.approx(3 / (4.5 * 5) ** 0.5)
