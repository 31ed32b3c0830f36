"""How well, and how soon, an embedding learns a character of the toy world: the figures that defaults are chosen by.

    python benchmarks/learning.py --folder FOLDER            # the defaults beside what the field uses
    python benchmarks/learning.py --folder FOLDER --sweep    # one setting after another, away from the defaults

Each row is taught `characters` x `seeds` times: eight pictures of a character the world has no name for, an embedding
trained on them, and pictures of it judged from their pixels. `right` is the share of its five parts that are; `edited`
the share of pictures that follow a change asked for by prompt (another background, another shirt), `kept` the share of
its other parts right in those. `steps` and `seconds` are those until 90 % are right, `reached` how many lessons got
there. Medians over lessons, with 95 % bootstrap intervals.
"""

import math

import numpy as np
from lessons import Lesson, accuracy, arguments, interval, teach_all

LOOKS = (25, 50, 100, 150, 200, 300, 400)

# What trainers' own documentation recommends, per step of ours: rate, batch, accumulation, vectors.
FIELD = {
    "ours": {},
    "diffusers": {"vectors": 1, "learning_rate": "0.002", "batch_size": 4},  # 5e-4 scaled by 4 accumulations
    "invoke-training": {"vectors": 4, "learning_rate": "0.004", "batch_size": 1},
    "onetrainer": {"vectors": 1, "learning_rate": "0.0003", "batch_size": 1},
    "a1111": {"vectors": 1, "learning_rate": "0.005", "batch_size": 1},
}
SWEEP = {
    "learning_rate": ("0.0005", "0.001", "0.002", "0.005", "0.01", "0.02", "0.02:100, 0.005:400"),
    "vectors": (1, 2, 4, 8),
    "batch_size": (1, 2, 4, 8),
    "init_text": ("figure", "", "photo"),
    "loss_weighting": ("none", "min_snr"),
    "min_timestep": (0, 250, 500),
    "template": ("subject", "subject_filewords"),
}


def lesson(character: int, seed: int, changed: dict) -> Lesson:
    own = {key: changed[key] for key in ("vectors", "init_text", "template") if key in changed}
    settings = {key: value for key, value in changed.items() if key not in own}
    return Lesson(character, seed=seed, settings=settings, looks=LOOKS, **own)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    rows = FIELD if not given.sweep else {f"{k} {v!r}": {k: v} for k, values in SWEEP.items() for v in values}
    lessons = {
        f"{i}-{character}-{seed}": lesson(character, seed, changed)
        for i, changed in enumerate(rows.values())
        for character in range(given.characters)
        for seed in range(given.seeds)
    }
    found = teach_all(lessons, given.folder, given.processes)
    print(f"{given.characters} characters x {given.seeds} seeds, {max(LOOKS)} steps a lesson\n")
    print("| setting | right | edited | kept | steps to 90 % | seconds to 90 % | reached |")
    print("|---|---|---|---|---|---|---|")
    for i, name in enumerate(rows):
        print(f"| {name} | {row([looks for key, looks in found.items() if key.startswith(f'{i}-')])} |")


def percent(values: list[float]) -> str:
    middle, low, high = (round(100 * value) for value in interval(values, np.median))
    return f"{middle} % ({low} to {high})"


def count(values: list[float], unit: str = "") -> str:
    """Median and interval where some are infinite: lessons that did not get there in time."""
    middle, low, high = (
        f"{value:.3g}{unit}" if math.isfinite(value) else f"over {max(LOOKS)}" if not unit else "-"
        for value in interval(values, np.median)
    )
    return f"{middle} ({low} to {high})"


def row(lessons: list[list[dict]]) -> str:
    """lessons: of each, what was found at each look."""
    last = [looks[-1] for looks in lessons]
    there = [next((look for look in looks if accuracy(look) >= 0.9), None) for looks in lessons]
    cells = [
        percent([accuracy(look) for look in last]),
        percent([float(np.mean(look["edited"])) for look in last]),
        percent([float(np.mean(look["kept"])) for look in last]),
        count([look["step"] if look else math.inf for look in there]),
        count([look["seconds"] if look else math.inf for look in there], " s"),
        f"{sum(look is not None for look in there)}/{len(there)}",
    ]
    return " | ".join(cells)


if __name__ == "__main__":
    main()
