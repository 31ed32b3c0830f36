"""Whether shuffling the vectors while they learn keeps one part's colour from turning up on another.

    python benchmarks/crosstalk.py --folder FOLDER
    python benchmarks/crosstalk.py --folder FOLDER --partial

Every mode of `ShuffleConfig` with 1, 2, 4 and 8 vectors, over `characters` x `seeds`: the toy world's held-out
characters, whose parts all have different colours, so that a wrong colour says where it came from. `crossed` is the
share of pictures in which some part has the colour of another part of the character. All lessons of a row are compared
with the same lessons without shuffling, pair by pair; intervals are 95 % bootstraps over characters, as lessons of one
character are not independent. `--partial` asks what the vectors hold one by one: pictures of prompts with the first
half, and the last half, of a trained embedding's vectors.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lessons import PARTS, Lesson, accuracy, arguments, teach_all

VECTORS = (1, 2, 4, 8)
MODES: dict[str, dict[str, Any]] = {
    **{mode: {"mode": mode} for mode in ("off", "all", "trailing", "leading", "between", "progressive", "dynamic")},
    # Unlocked one by one over the first two thirds of the training, as it was meant to be used.
    "progressive, unlocking": {"mode": "progressive", "progressive_words": True},
    "all, unlocking": {"mode": "all", "progressive_words": True},
}
STEPS = 300


def differs_from_off(mode: str, vectors: int) -> bool:
    """Whether a mode does anything with so many vectors; see the table in `shuffle.ShuffleConfig`."""
    least = {"off": 1, "all": 2, "trailing": 3, "leading": 3, "between": 4, "progressive": 4, "dynamic": 2}
    return vectors >= (2 if "unlocking" in mode else least[mode])


def lesson(mode: str, vectors: int, character: int, seed: int) -> Lesson:
    shuffle = dict(MODES[mode])
    if "unlocking" in mode:
        shuffle["unlock_every"] = max(1, 2 * STEPS // 3 // vectors)
    return Lesson(character, vectors=vectors, seed=seed, shuffle=shuffle, looks=(STEPS,))


def crossed(found: Mapping[str, Any]) -> np.ndarray:
    """For each picture, which part shows which part's colour, bool [pictures, parts, parts]; never [_, i, i]."""
    shown, own = np.array(found["shown"], dtype=object), np.array(found["own"], dtype=object)
    same = (shown[:, :, None] == own) & np.array([colour is not None for colour in own])
    return same & ~np.eye(len(own), dtype=bool)


FIGURES = {
    "crossed": lambda found: crossed(found).any((1, 2)).mean(),
    "right": accuracy,
    "edited": lambda found: np.mean(found["edited"]),
    "kept": lambda found: np.mean([right for each in found["kept"] for right in each]),
}


def interval(by_character: np.ndarray) -> tuple[float, float, float]:
    """Mean of values [characters, seeds] and its 95 % interval, resampling characters."""
    means = by_character.mean(1)
    draws = np.random.default_rng(0).choice(means, (10_000, len(means))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(means.mean()), float(low), float(high)


def points(values: np.ndarray, sign: bool = False) -> str:
    middle, low, high = (100 * value for value in interval(values))
    form = "+.0f" if sign else ".0f"
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def confusion(found: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """[parts, parts + 1]: how often a part (row) shows the colour of a part (column), or in the last none of them."""
    table = np.zeros((len(PARTS), len(PARTS) + 1))
    for each in found:
        shown, own = np.array(each["shown"], dtype=object), np.array(each["own"], dtype=object)
        same = shown[:, :, None] == own
        table[:, :-1] += same.sum(0)
        table[:, -1] += (~same.any(2)).sum(0)
    return table / table.sum(1, keepdims=True)


def main() -> None:
    given = arguments(__doc__).parse_args()
    cells = [(mode, n) for n in VECTORS for mode in MODES if mode == "off" or differs_from_off(mode, n)]
    names = list(MODES)
    lessons = {
        f"{names.index(mode)}-{n}-{character}-{seed}": lesson(mode, n, character, seed)
        for character in range(given.characters)
        for seed in range(given.seeds)
        for mode, n in cells
    }
    found = teach_all(lessons, given.folder, given.processes)

    def of(mode: str, n: int) -> list[list[dict]]:
        return [
            [found[f"{names.index(mode)}-{n}-{character}-{seed}"][-1] for seed in range(given.seeds)]
            for character in range(given.characters)
        ]

    print(f"{given.characters} characters x {given.seeds} seeds, {STEPS} steps; percent (95 % interval)\n")
    print("| vectors | mode | crossed | less off | right | less off | edited | kept |")
    print("|---|---|---|---|---|---|---|---|")
    summary = []
    for mode, n in cells:
        here, off = of(mode, n), of("off", n)
        values = {name: np.array([[f(one) for one in row] for row in here]) for name, f in FIGURES.items()}
        without = {name: np.array([[f(one) for one in row] for row in off]) for name, f in FIGURES.items()}
        less = {name: points(values[name] - without[name], sign=True) if mode != "off" else "" for name in values}
        row = [points(values["crossed"]), less["crossed"], points(values["right"]), less["right"]]
        print(f"| {n} | {mode} | {' | '.join([*row, points(values['edited']), points(values['kept'])])} |")
        summary.append({"vectors": n, "mode": mode, **{name: interval(v) for name, v in values.items()}})
    print("\nWhich part's colour (column) each part (row) shows, percent of its pictures:")
    for mode, n in cells:
        print(f"\n{n} vectors, {mode}\n\n| | {' | '.join(PARTS)} | none of these |\n|---|{'---|' * (len(PARTS) + 1)}")
        for part, row in zip(PARTS, confusion([one for seeds in of(mode, n) for one in seeds]), strict=True):
            print(f"| {part} | {' | '.join(f'{100 * share:.1f}' for share in row)} |")
    Path(given.folder, "summary.json").write_text(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
