"""What each part of the fast preset is worth, and what else was tried, in the toy world.

    python -m benchmarks.tried --folder FOLDER --seeds 2

The first row is the preset; each other one has one thing otherwise, which is in the core or in `levers.py`. Where that
is the number of pictures a step, rates fall after as many pictures as the preset's; where it is the optimizer, rates
are its own. Lessons are those of `learning.py`'s set `development`. `right after N` is the
share of the parts that are right when so many pictures were seen, `- preset` less the first row's, lesson by lesson;
`edited` and `kept`, as explained there, are of the end. Seconds are of all steps, at the pace of the row's quickest
lesson. With 95 % bootstrap intervals.

The last rows tell what limits it: steps from 64 pictures, whose gradients are nearly exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.learning import IN_THE_END, RECIPES, SETS, Lessons, by_lesson, lesson, pace
from benchmarks.lessons import Lesson, accuracy, arguments, teach_all
from benchmarks.levers import LEVERS
from benchmarks.tables import percent, table

SEEN = {"subject": (24, 32, 64), "style": (64, 100, 160, 240)}  # pictures, at each look

# What is otherwise: settings of training, and of lessons.
CHANGED: dict[str, dict[str, Mapping[str, Any]]] = {
    "subject": {
        "preset fast": {},
        "optimizer adamw, rates a twentieth": {
            "optimizer": "adamw",
            "learning_rate": "0.02:8, 0.01:16, 0.005:32, 0.0025",
        },
        "rate 0.1 all the time": {"learning_rate": "0.1"},
        "rates 0.8, 0.4, ...": {"learning_rate": "0.8:8, 0.4:16, 0.2:32, 0.1"},
        "rates 0.2, 0.1, ...": {"learning_rate": "0.2:8, 0.1:16, 0.05:32, 0.025"},
        "all timesteps": {"min_timestep": 0, "max_timestep": 1000},
        "timesteps 300 to 900": {"max_timestep": 900},
        "timesteps 500 to 700": {"min_timestep": 500, "max_timestep": 700},
        "1 picture a step": {"batch_size": 1, "learning_rate": "0.4:16, 0.2:32, 0.1:64, 0.05"},
        "4 pictures a step": {"batch_size": 4, "learning_rate": "0.4:4, 0.2:8, 0.1:16, 0.05"},
        "1 vector": {"vectors": 1},
        "4 vectors": {"vectors": 4},
        "init text *": {"init_text": "*"},
        **{lever: {"lever": lever} for lever in LEVERS},
    },
    "style": {
        "preset fast": {},
        "4 vectors": {"vectors": 4},
        "16 vectors": {"vectors": 16},
        "vectors shuffled, dynamic": {"shuffle": {"mode": "dynamic"}},
        "rates as for subjects": {"learning_rate": RECIPES["preset fast"]["subject"]["learning_rate"]},
        "all timesteps": {"min_timestep": 0},
        "timesteps 300 to 800": {"max_timestep": 800},
        "4 pictures a step": {"batch_size": 4, "learning_rate": "0.4:8, 0.2:16, 0.1:32, 0.05"},
    },
}
EXACT = 64
EXACT_STEPS = (4, 6, 8, 10, 12)
EXACT_RATES = {"rate 0.5": "0.5", "rates 0.6, 0.3, 0.1": "0.6:4, 0.3:8, 0.1"}


def changed(kind: str, name: str, character: int, seed: int) -> Lesson:
    settings = {**RECIPES["preset fast"][kind], **CHANGED[kind][name]}
    own = {key: settings.pop(key) for key in ("vectors", "init_text", "shuffle", "lever") if key in settings}
    looks = tuple(pictures // settings["batch_size"] for pictures in SEEN[kind])
    return replace(lesson("preset fast", kind, character, seed), settings=settings, looks=looks, **own)


def exact(rates: str, character: int, seed: int) -> Lesson:
    settings = {"batch_size": 8, "gradient_accumulation": EXACT // 8, "learning_rate": rates}
    usual = lesson("preset fast", "subject", character, seed)
    return replace(usual, settings={**usual.settings, **settings}, looks=EXACT_STEPS)


def right(i: int, lessons: Lessons) -> np.ndarray:
    return by_lesson(lambda looks: accuracy(looks[i]), lessons)


def cells(lessons: Lessons, fast: Lessons) -> list[str]:
    """A row of the tables; fast: the same lessons by the preset."""
    looks = range(len(lessons[0][0]))
    return [
        *(percent(right(i, lessons)) for i in looks),
        *("" if lessons is fast else percent(right(i, lessons) - right(i, fast), sign=True) for i in looks[:2]),
        *(percent(by_lesson(IN_THE_END[name], lessons)) for name in ("edited", "kept")),
        f"{lessons[0][0][-1]['step'] * pace(lessons):.2f}",
    ]


def main() -> None:
    given = arguments(__doc__).parse_args()

    def every(make: Callable[..., Lesson], kind: str, *told: str) -> list[list[Lesson]]:
        return [
            [make(*told, character, seed) for seed in range(given.seeds)] for character in SETS["development"][kind]
        ]

    lessons = {(kind, name): every(changed, kind, kind, name) for kind, of in CHANGED.items() for name in of}
    lessons |= {("exact", name): every(exact, "subject", rates) for name, rates in EXACT_RATES.items()}
    flat = [one for of in lessons.values() for seeds in of for one in seeds]
    looks = iter(teach_all(flat, given.folder, given.processes))
    taught = {what: [[next(looks) for _ in seeds] for seeds in of] for what, of in lessons.items()}
    for kind, of in CHANGED.items():
        print(f"\n{kind}: {len(SETS['development'][kind])} of the set development x {given.seeds} seeds\n")
        titles = ["", *(f"right after {n}" for n in SEEN[kind]), *(f"after {n} - preset" for n in SEEN[kind][:2])]
        rows = ([name, *cells(taught[kind, name], taught[kind, "preset fast"])] for name in of)
        print(table([*titles, "edited", "kept", "seconds"], rows))
    print(f"\nSteps of {EXACT} pictures: right after so many.\n")
    shown = (
        [name, *(percent(right(i, taught["exact", name])) for i in range(len(EXACT_STEPS)))] for name in EXACT_RATES
    )
    print(table(["", *map(str, EXACT_STEPS)], shown))


if __name__ == "__main__":
    main()
