"""What each part of the fast preset is worth, and what else was tried, in the toy world.

    python -m benchmarks.tried --folder FOLDER

The first row is the preset; each other one has one thing otherwise, which is in the core or in `levers.py`. Lessons are
those of `learning.py`'s set `development`, of characters. `right after N` is the share of the parts that are right when
so many pictures were seen, `- preset` less the first row's, lesson by lesson; `edited` and `kept`, as explained there,
are of the end. Seconds are of all steps, at the pace of the row's quickest lesson. With 95 % bootstrap intervals.

The last rows tell what limits it: steps from 64 pictures, whose gradients are nearly exact.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.learning import RECIPES, SETS, Lessons, by_lesson, lesson, pace
from benchmarks.lessons import Lesson, accuracy, arguments, teach_all
from benchmarks.levers import LEVERS
from benchmarks.tables import percent, table

SEEN = (24, 32, 48, 64)  # pictures
FAST = RECIPES["preset fast"]["subject"]
LONG = "0.4:16, 0.2:32, 0.1:64, 0.05"  # for steps of one picture

# What is otherwise: settings of training, and of lessons.
CHANGED: dict[str, Mapping[str, Any]] = {
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
    "1 picture a step": {"batch_size": 1, "learning_rate": LONG},
    "4 pictures a step": {"batch_size": 4},
    "1 vector": {"vectors": 1},
    "4 vectors": {"vectors": 4},
    "init text *": {"init_text": "*"},
    **{lever: {"lever": lever} for lever in LEVERS},
}
EXACT = 64
EXACT_STEPS = (4, 6, 8, 10, 12)
EXACT_RATES = {"rate 0.5": "0.5", "rates 0.6, 0.3, 0.1": "0.6:4, 0.3:8, 0.1"}


def changed(name: str, character: int, seed: int) -> Lesson:
    settings = {**FAST, **CHANGED[name]}
    own = {key: settings.pop(key) for key in ("vectors", "init_text", "lever") if key in settings}
    looks = tuple(pictures // settings["batch_size"] for pictures in SEEN)
    return replace(lesson("preset fast", "subject", character, seed), settings=settings, looks=looks, **own)


def exact(rates: str, character: int, seed: int) -> Lesson:
    settings = {**FAST, "batch_size": 8, "gradient_accumulation": EXACT // 8, "learning_rate": rates}
    own = {"vectors": settings.pop("vectors")}
    return replace(lesson("preset fast", "subject", character, seed), settings=settings, looks=EXACT_STEPS, **own)


def cells(lessons: Lessons, fast: Lessons) -> list[str]:
    """A row of the first table; fast: the same lessons by the preset."""
    right = [by_lesson(lambda looks, i=i: accuracy(looks[i]), lessons) for i in range(len(SEEN))]
    less = [
        each - by_lesson(lambda looks, i=i: accuracy(looks[i]), fast) for i, each in enumerate(right) if SEEN[i] <= 32
    ]
    return [
        *map(percent, right),
        *("" if lessons is fast else percent(each, sign=True) for each in less),
        *(
            percent(by_lesson(lambda looks, name=name: float(np.mean(looks[-1][name])), lessons))
            for name in ("edited", "kept")
        ),
        f"{lessons[0][0][-1]['step'] * pace(lessons):.2f}",
    ]


def main() -> None:
    given = arguments(__doc__).parse_args()
    characters, seeds = SETS["development"]["subject"], range(given.seeds)
    lessons = {name: [[changed(name, c, seed) for seed in seeds] for c in characters] for name in CHANGED}
    lessons |= {
        name: [[exact(rates, c, seed) for seed in seeds] for c in characters] for name, rates in EXACT_RATES.items()
    }
    every = iter(
        teach_all([one for of in lessons.values() for row in of for one in row], given.folder, given.processes)
    )
    taught = {name: [[next(every) for _ in row] for row in of] for name, of in lessons.items()}
    print(f"{len(characters)} characters of the set development x {given.seeds} seeds\n")
    titles = ["", *(f"right after {n}" for n in SEEN), *(f"after {n} - preset" for n in SEEN if n <= 32)]
    rows = ([name, *cells(taught[name], taught["preset fast"])] for name in CHANGED)
    print(table([*titles, "edited", "kept", "seconds"], rows))
    print(f"\nSteps of {EXACT} pictures: right after so many.\n")
    rows = (
        [
            name,
            *(percent(by_lesson(lambda looks, i=i: accuracy(looks[i]), taught[name])) for i in range(len(EXACT_STEPS))),
        ]
        for name in EXACT_RATES
    )
    print(table(["", *map(str, EXACT_STEPS)], rows))


if __name__ == "__main__":
    main()
