"""What the fixed loss knows of how well an embedding is learnt in the toy world, and what it is worth to go by it.

    python -m benchmarks.stopping --folder FOLDER --characters 6 --seeds 3

Lessons as in `sweeps.py`, of the preset for subjects: as it is, and with a rate ten times as high. The fixed loss is
taken as often as by default, and pictures are judged after `LOOKS` steps; between two looks figures are interpolated.
All rules are then tried on these same trainings.

First a table of what the losses know: the rank correlation (Spearman) of each with the score, over the evaluations of
a lesson, with the sign turned, so that 1 is a loss that falls as the score rises. The score is the mean of `right`,
`edited` and `kept`, which are explained in `sweeps.py`. `training loss` is the mean over the steps since the
evaluation before.

Then what rules choose: the last step, that of the lowest fixed loss (`best`), of the lowest training loss, and the one
judged best. (That one is chosen by half of the pictures and judged by the others, both ways round, or it would look
better than it is.) `patience N` and `dvar WINDOW, SHARE` end the training, and take the last step by then, or the best.
`- last`: less the figure of the last of all steps, lesson by lesson. Means over lessons, with 95 % bootstrap intervals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from benchmarks.lessons import Lesson, arguments, teach_all
from benchmarks.tables import Statistic, interval, percent, table
from textinv_core.training.evaluation import is_at_rest, is_out_of_patience, steps_between
from textinv_core.training.presets import PRESETS
from textinv_core.training.settings import TrainSettings

LOOKS = (25, 50, 75, 100, 150, 200, 300, 400, 500)
# The pictures of a step in one batch, which a CPU has sooner done.
BATCH = TrainSettings.batch_size * TrainSettings.gradient_accumulation
EVERY = steps_between(TrainSettings(("",)), LOOKS[-1])
PRESET: dict[str, Any] = {**PRESETS["subject"]["train"], "batch_size": BATCH}
KINDS: dict[str, dict[str, Any]] = {
    "preset": {},
    "rate 0.02": {"learning_rate": "0.02"},
}
FIGURES = ("right", "edited", "kept")


def lesson(changed: dict[str, Any], character: int, seed: int) -> Lesson:
    settings = {**PRESET, **changed}
    assert settings.pop("steps") == LOOKS[-1]
    vectors = PRESETS["subject"]["vectors"]
    return Lesson(character, vectors=vectors, seed=seed, settings=settings, looks=LOOKS, evaluate_every=EVERY)


@dataclass(frozen=True)
class Course:
    """A lesson as it went.

    steps: of its evaluations but the start's. fixed: losses, the start's first. single: mean losses of the steps before
    each. figures: FIGURES [3, steps]; halves: the same by half of the pictures, [2, 3, steps].
    """

    steps: np.ndarray
    fixed: np.ndarray
    single: np.ndarray
    figures: np.ndarray
    halves: np.ndarray

    @property
    def score(self) -> np.ndarray:
        return self.figures.mean(0)

    def cut(self, evaluations: int) -> "Course":
        """As it would have gone, had it ended after so many."""
        n = evaluations
        return Course(self.steps[:n], self.fixed[: n + 1], self.single[:n], self.figures[:, :n], self.halves[:, :, :n])


def course(looks: Sequence[Mapping[str, Any]]) -> Course:
    (_, start, _), *evaluated = [each for look in looks for each in look["evaluated"]]
    steps, fixed, single = map(np.array, zip(*evaluated, strict=True))
    looked = [look["step"] for look in looks]

    def figures(pictures: slice) -> np.ndarray:
        right = [np.equal(look["shown"], look["own"])[pictures].mean() for look in looks]
        others = [[np.mean(look[figure][pictures]) for look in looks] for figure in FIGURES[1:]]
        return np.array([np.interp(steps, looked, each) for each in (right, *others)])

    halves = np.array([figures(slice(0, None, 2)), figures(slice(1, None, 2))])
    return Course(steps, np.array([start, *fixed]), single, figures(slice(None)), halves)


@dataclass(frozen=True)
class Taken:
    """What a rule takes: the FIGURES of a step, that step, and the one the training ended at."""

    figures: np.ndarray
    step: float
    end: float


Rule = Callable[[Course], Taken]


def at(one: Course, index: int) -> Taken:
    return Taken(one.figures[:, index], one.steps[index], one.steps[-1])


def last(one: Course) -> Taken:
    return at(one, -1)


def best(one: Course) -> Taken:
    return at(one, int(one.fixed[1:].argmin()))


def lowest_training_loss(one: Course) -> Taken:
    return at(one, int(one.single.argmin()))


def judged_best(one: Course) -> Taken:
    chosen = one.halves.mean(1).argmax(-1)
    figures = np.mean([one.halves[1 - half, :, index] for half, index in enumerate(chosen)], axis=0)
    return Taken(figures, float(one.steps[chosen].mean()), one.steps[-1])


def early(rule: Rule, enough: Callable[[Sequence[float]], bool]) -> Rule:
    """`rule` for trainings that end as soon as `enough` says so of the fixed losses until then."""

    def of(one: Course) -> Taken:
        n = len(one.steps)
        return rule(one.cut(next((i for i in range(1, n) if enough([*one.fixed[: i + 1]])), n)))

    return of


def rules() -> dict[str, Rule]:
    stops = {f"patience {n}": partial(is_out_of_patience, patience=n) for n in (2, 3, 5, 8)}
    windows = ((8, 0.05), (8, 0.15), (8, 0.3), (4, 0.15))
    stops |= {f"dvar {w}, {share}": partial(is_at_rest, window=w, share=share) for w, share in windows}
    found = {"last": last, "best": best, "lowest training loss": lowest_training_loss, "judged best": judged_best}
    found |= {name: early(last, enough) for name, enough in stops.items()}
    return found | {f"{name}, best": early(best, stops[name]) for name in ("patience 3", "dvar 8, 0.15")}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, with the mean rank for equal values; 0 where all of one are equal."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[place]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


def number(values: Any, form: str = "{:.2f}", of: Statistic = np.mean) -> str:
    middle, low, high = map(form.format, interval(values, of))
    return f"{middle} ({low} to {high})"


Courses = Sequence[Sequence[Course]]  # by character and seed


def by_lesson(courses: Courses, value: Callable[[Course], float]) -> np.ndarray:
    return np.array([[value(one) for one in of_character] for of_character in courses])


def knows(courses: Courses) -> list[str]:
    """A row of the first table."""
    falls = by_lesson(courses, lambda one: 1 - one.fixed[1:].min() / one.fixed[0])
    fixed = by_lesson(courses, lambda one: rank_correlation(-one.fixed[1:], one.score))
    single = by_lesson(courses, lambda one: rank_correlation(-one.single, one.score))
    return [percent(falls), number(fixed), number(single), number(fixed - single, "{:+.2f}")]


def takes(courses: Courses, rule: Rule) -> list[str]:
    """A row of the second."""

    def figures(of: Rule) -> list[np.ndarray]:
        return [by_lesson(courses, lambda one, n=n: of(one).figures[n]) for n in range(len(FIGURES))]

    own = figures(rule)
    less_last = [a - b for a, b in zip(own, figures(last), strict=True)]
    score = np.mean(own, axis=0) - np.mean(figures(judged_best), axis=0)
    return [
        number(by_lesson(courses, lambda one: rule(one).end), "{:.0f}"),
        number(by_lesson(courses, lambda one: rule(one).step), "{:.0f}"),
        *map(percent, own),
        *(percent(less, sign=True) for less in less_last),
        percent(score, sign=True),
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--characters", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first of the characters")
    given = parser.parse_args()
    characters, seeds = range(given.first, given.first + given.characters), range(given.seeds)
    lessons = {
        (kind, character, seed): lesson(changed, character, seed)
        for seed, (kind, changed), character in product(seeds, KINDS.items(), characters)
    }
    taught = dict(zip(lessons, teach_all([*lessons.values()], given.folder, given.processes), strict=True))
    courses = {kind: [[course(taught[kind, c, s]) for s in seeds] for c in characters] for kind in KINDS}
    print(f"{len(characters)} characters x {len(seeds)} seeds; evaluated every {EVERY} steps, judged after {LOOKS}.\n")
    titles = ["setting", "fixed loss falls by %", "fixed loss", "training loss", "difference"]
    print(table(titles, ([kind, *knows(courses[kind])] for kind in KINDS)), "\n")
    titles = ["setting", "rule", "ended at", "step taken", *(f"{figure} %" for figure in FIGURES)]
    titles += [*(f"{figure} - last" for figure in FIGURES), "score - judged best"]
    print(
        table(titles, ([kind, name, *takes(courses[kind], rule)] for kind in KINDS for name, rule in rules().items()))
    )


if __name__ == "__main__":
    main()
