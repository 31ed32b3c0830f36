"""What one setting more or less does to learning in the toy world: the figures that defaults are chosen by.

    python -m benchmarks.sweeps --folder FOLDER

Whole recipes are compared in `learning.py`. The rows `subject` and `style` are where the sweeps start, with one thing
otherwise in each row after; `preset` ones are what was chosen by these. Each is taught `characters` x `seeds` times:
eight pictures of a character the world has no name for (or in a style: any characters, in the same clothes before the
same background), an embedding trained on them, and pictures with it judged from their pixels.

`right` is the share of the parts that are right after so many `steps`; `edited` the share of pictures that follow a
change asked for by prompt, and `kept` the share of the other parts right in those; `- start`: less the row where the
sweep starts, lesson by lesson. `until 90 %`: the first look, of those listed, at which 90 % were right, and `seconds`
what so many steps take at the pace of the row's quickest lesson, as others may have shared the machine; `reached`: how
many lessons got there. Medians over lessons, but means of `edited` and differences, with 95 % bootstrap intervals.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.lessons import Lesson, accuracy, arguments, teach_all
from benchmarks.tables import percent, table, until
from textinv_core.training.presets import PRESETS
from textinv_core.training.settings import TrainSettings

LOOKS = {"subject": (50, 100, 200), "style": (100, 200, 400, 1000)}
BASE = {
    "subject": {"vectors": 4, "learning_rate": "0.002", "batch_size": 4},
    "style": {"vectors": 4, "learning_rate": "0.005", "batch_size": 4},
}

SWEEPS = {
    "subject": {
        "steps": (500,),
        "learning_rate": ("0.001", "0.005", "0.01"),
        "vectors": (1, 2, 8),
        "batch_size": (1, 8),
        "init_text": ("*",),
        "loss_weighting": ("min_snr",),
        "min_timestep": (500,),
        "filewords": (True,),
    },
    "style": {"learning_rate": ("0.002", "0.01"), "vectors": (1, 2)},
}


def rows() -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> kind of lesson, and what is other than in BASE."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for kind, sweep in SWEEPS.items():
        rows[kind] = (kind, {})
        if kind == "subject":
            rows["subject, pictures one by one"] = (kind, {"batch_size": 1, "gradient_accumulation": 4})
        rows |= {f"{kind}, {key} {value!r}": (kind, {key: value}) for key, values in sweep.items() for value in values}
        preset = PRESETS[kind]
        # The pictures of a step in one batch, which a CPU has sooner done.
        pictures = TrainSettings.batch_size * TrainSettings.gradient_accumulation
        changed = {"vectors": preset["vectors"], "batch_size": pictures, **preset["train"]}
        rows[f"preset {kind}"] = (kind, changed)
    return rows


def lesson(kind: str, changed: dict[str, Any], character: int, seed: int) -> Lesson:
    settings = {**BASE[kind], **changed}
    looks = {*LOOKS[kind], settings.pop("steps", 0)} - {0}
    own = {key: settings.pop(key) for key in ("vectors", "init_text", "filewords") if key in settings}
    return Lesson(character, kind, seed=seed, settings=settings, looks=tuple(sorted(looks)), **own)


Looks = Sequence[dict[str, Any]]  # what `judge` said at each look of a lesson


def right(looks: Looks) -> float:
    return accuracy(looks[-1])


def edited(looks: Looks) -> float:
    return float(np.mean(looks[-1]["edited"]))


def kept(looks: Looks) -> float:
    return float(np.mean(looks[-1]["kept"]))


def first_right(looks: Looks) -> float:
    return next((look["step"] for look in looks if accuracy(look) >= 0.9), math.inf)


TITLES = (
    "steps",
    "right %",
    "edited %",
    "kept %",
    "right - start",
    "edited - start",
    "until 90 %",
    "seconds",
    "reached",
)


def cells(lessons: Sequence[Sequence[Looks]], start: Sequence[Sequence[Looks]]) -> list[str]:
    """A row of the table. lessons, start: by character and seed, the row's own and those where its sweep starts."""

    def by_lesson(figure: Callable[[Looks], float], of: Sequence[Sequence[Looks]] = lessons) -> np.ndarray:
        return np.array([[figure(looks) for looks in seeds] for seeds in of])

    steps = by_lesson(first_right)
    pace = by_lesson(lambda looks: looks[-1]["seconds"] / looks[-1]["step"]).min()
    return [
        str(lessons[0][0][-1]["step"]),
        percent(by_lesson(right), np.median),
        percent(by_lesson(edited)),
        percent(by_lesson(kept), np.median),
        *("" if lessons is start else percent(by_lesson(f) - by_lesson(f, start), sign=True) for f in (right, edited)),
        until(steps),
        until(steps * pace),
        f"{np.isfinite(steps).sum()}/{np.size(steps)}",
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--characters", type=int, default=10)
    given = parser.parse_args()
    settings = rows()
    lessons = {
        label: [
            [lesson(kind, changed, character, seed) for seed in range(given.seeds)]
            for character in range(given.characters)
        ]
        for label, (kind, changed) in settings.items()
    }
    flat = [one for row in lessons.values() for seeds in row for one in seeds]
    every = iter(teach_all(flat, given.folder, given.processes))
    taught = {label: [[next(every) for _ in seeds] for seeds in row] for label, row in lessons.items()}
    print(f"{given.characters} characters x {given.seeds} seeds; looked at after {LOOKS} steps, and after the last.")
    print("Sweeps start with\n")
    print("".join(f"- {kind}: {base}\n" for kind, base in BASE.items()))
    print(
        table(["setting", *TITLES], ([label, *cells(row, taught[settings[label][0]])] for label, row in taught.items()))
    )


if __name__ == "__main__":
    main()
