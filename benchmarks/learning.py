"""How well, and how soon, an embedding learns in the toy world: the figures that defaults are chosen by.

    python benchmarks/learning.py --folder FOLDER

The rows `subject` and `style` are where the sweeps start, with one thing otherwise in each row after; `preset` ones are
what was chosen by these. Each is taught `characters` x `seeds` times: eight pictures of a character the world has no
name for (or in a style: any characters, in the same clothes before the same background), an embedding trained on them,
and pictures with it judged from their pixels. `right` is the share of the parts that are right after all steps;
`edited` the share of pictures that follow a change asked for by prompt, and `kept` the share of the other parts right
in those. `steps` and `seconds` are those until 90 % were right, `reached` how many lessons got there. Medians over
lessons, with 95 % bootstrap intervals, but for `edited`, of which the mean.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lessons import Lesson, accuracy, arguments, interval, teach_all

from textinv_core.training.presets import PRESETS
from textinv_core.training.settings import TrainSettings

LOOKS = {"subject": (50, 100, 200), "style": (100, 200, 400, 1000)}
BASE = {
    "subject": {"vectors": 4, "learning_rate": "0.002", "batch_size": 4},
    "style": {"vectors": 4, "learning_rate": "0.005", "batch_size": 4},
}

# What trainers' own documentation recommends: rates as they are after scaling, accumulated batches as one.
FIELD = {
    "diffusers": {"vectors": 1, "learning_rate": "0.002"},
    "invoke-training": {"vectors": 4, "learning_rate": "0.004", "batch_size": 1},
    "onetrainer": {"vectors": 1, "learning_rate": "0.0003", "batch_size": 1, "init_text": "*"},
    "kohya": {"vectors": 4, "learning_rate": "1e-6"},
    "a1111": {"vectors": 1, "learning_rate": "0.005", "batch_size": 1, "init_text": "*"},
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
    "style": {"learning_rate": ("0.002", "0.01"), "vectors": (1, 2), "filewords": (True,)},
}


def rows() -> dict[str, tuple[str, dict[str, Any]]]:
    """Label -> kind of lesson, and what is other than in BASE."""
    found = {"subject": ("subject", {}), **{f"as {name}": ("subject", changed) for name, changed in FIELD.items()}}
    found["subject, pictures one by one"] = ("subject", {"batch_size": 1, "gradient_accumulation": 4})
    for kind, sweep in SWEEPS.items():
        found[kind] = (kind, {})
        found |= {f"{kind}, {key} {value!r}": (kind, {key: value}) for key, values in sweep.items() for value in values}
        preset = PRESETS[kind]
        # The pictures of a step in one batch, which a CPU has sooner done.
        pictures = TrainSettings.batch_size * TrainSettings.gradient_accumulation
        told = {"vectors": preset["vectors"], "batch_size": pictures, **preset["train"]}
        found[f"preset {kind}"] = (kind, told)
    return found


def lesson(kind: str, changed: dict[str, Any], character: int, seed: int) -> Lesson:
    told = {**BASE[kind], **changed}
    looks = {*LOOKS[kind], told.pop("steps", 0)} - {0}
    own = {key: told.pop(key) for key in ("vectors", "init_text", "filewords") if key in told}
    return Lesson(character, kind, seed=seed, settings=told, looks=tuple(sorted(looks)), **own)


def percent(values: Any, of: Any = np.median) -> str:
    middle, low, high = (round(100 * value) for value in interval(values, of))
    return f"{middle} ({low} to {high})"


def until(values: Any) -> str:
    """Median and interval where some are infinite: lessons that did not get there in time."""
    ordered = [f"{value:.3g}" if math.isfinite(value) else "never" for value in interval(values, np.median)]
    return f"{ordered[0]} ({ordered[1]} to {ordered[2]})"


def cells(lessons: Sequence[Sequence[Sequence[dict[str, Any]]]]) -> list[str]:
    """lessons: by character and seed, what was found at each look."""

    def table(figure: Callable[[Sequence[dict[str, Any]]], float]) -> list[list[float]]:
        return [[figure(looks) for looks in seeds] for seeds in lessons]

    def first(looks: Sequence[dict[str, Any]], what: str) -> float:
        return next((look[what] for look in looks if accuracy(look) >= 0.9), math.inf)

    steps = table(lambda looks: first(looks, "step"))
    return [
        percent(table(lambda looks: accuracy(looks[-1]))),
        percent(table(lambda looks: float(np.mean(looks[-1]["edited"]))), np.mean),
        percent(table(lambda looks: float(np.mean(looks[-1]["kept"])))),
        until(steps),
        until(table(lambda looks: first(looks, "seconds"))),
        f"{np.isfinite(steps).sum()}/{np.size(steps)}",
    ]


def main() -> None:
    given = arguments(__doc__).parse_args()
    lessons = {
        label: [
            [lesson(kind, changed, character, seed) for seed in range(given.seeds)]
            for character in range(given.characters)
        ]
        for label, (kind, changed) in rows().items()
    }
    flat = [one for row in lessons.values() for seeds in row for one in seeds]
    found = iter(teach_all(flat, given.folder, given.processes))
    print(f"{given.characters} characters x {given.seeds} seeds; looked at after {LOOKS} steps, and after the last.")
    print("Sweeps start with\n")
    print("".join(f"- {kind}: {base}\n" for kind, base in BASE.items()))
    print("| setting | right % | edited % | kept % | steps to 90 % | seconds to 90 % | reached |")
    print("|---|---|---|---|---|---|---|")
    for label, row in lessons.items():
        print(f"| {label} | {' | '.join(cells([[next(found) for _ in seeds] for seeds in row]))} |")


if __name__ == "__main__":
    main()
