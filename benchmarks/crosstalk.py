"""Whether shuffling the vectors while they learn keeps one part's colour from turning up on another.

    python benchmarks/crosstalk.py --folder FOLDER

Every mode of `ShuffleConfig` with 1, 2, 4 and 8 vectors, over `characters` x `seeds`: the toy world's held-out
characters, whose parts all have different colours, so that a wrong colour says where it came from. `crossed` is the
share of pictures in which some part has the colour of another part of the character, `right` the share of parts with
their own colour, `edited` the share of pictures that follow a change asked for by prompt, and `kept` that of the other
parts right in those; `half crossed` and `half right` are the same for pictures of prompts with the first or the last
half of the vectors alone. Each mode is compared with no shuffling, lesson by lesson. Intervals are 95 % bootstraps
over characters, as lessons of one character are not independent.

Modes that put the vectors in the very same orders are taught once: `dynamic` is `all` with 2 vectors, `between` with 4
and more, and `progressive` without unlocking is `between`; none but `off` does anything with 1, and only `all` with 2.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from lessons import PARTS, Lesson, accuracy, arguments, teach_all

VECTORS = (1, 2, 4, 8)
# Mode -> its settings, and the fewest vectors with which it is a mode of its own.
MODES: dict[str, tuple[dict[str, Any], int]] = {
    "off": ({}, 1),
    "all": ({"mode": "all"}, 2),
    "trailing": ({"mode": "trailing"}, 4),
    "leading": ({"mode": "leading"}, 4),
    "between": ({"mode": "between"}, 4),
    # Unlocked one by one over the first two thirds of the training.
    "off, unlocking": ({"progressive_words": True}, 4),
    "progressive, unlocking": ({"mode": "progressive", "progressive_words": True}, 4),
}
STEPS, BATCH = 100, 4


def lesson(mode: str, vectors: int, character: int, seed: int) -> Lesson:
    shuffle = dict(MODES[mode][0])
    if "progressive_words" in shuffle:
        shuffle["unlock_every"] = 2 * STEPS // 3 // vectors
    settings = {"batch_size": BATCH}
    return Lesson(
        character,
        vectors=vectors,
        seed=seed,
        settings=settings,
        shuffle=shuffle,
        looks=(STEPS,),
        halves=vectors > 1,
    )


def same_colours(found: Mapping[str, Any]) -> np.ndarray:
    """Whether a part shows the colour that a part should have, bool [pictures, parts shown, parts that have it]."""
    shown, own = np.array(found["shown"], dtype=object), np.array(found["own"], dtype=object)
    return shown[:, :, None] == own


def crossed(found: Mapping[str, Any]) -> float:
    """The share of pictures in which a part shows another's colour; having no hat is not a colour."""
    colours = np.array([colour is not None for colour in found["own"]])
    return float((same_colours(found) & colours & ~np.eye(len(colours), dtype=bool)).any((1, 2)).mean())


def of_halves(figure: Callable[[dict], float]) -> Callable[[Mapping[str, Any]], float]:
    """A figure of the pictures made with half of the vectors; of all pictures where there is one vector."""
    return lambda found: float(
        np.mean([figure({"own": found["own"], "shown": half}) for half in found.get("halves", [found["shown"]])])
    )


FIGURES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "crossed": crossed,
    "right": accuracy,
    "edited": lambda found: float(np.mean(found["edited"])),
    "kept": lambda found: float(np.mean(found["kept"])),
    "half crossed": of_halves(crossed),
    "half right": of_halves(accuracy),
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
    same = np.concatenate([same_colours(each) for each in found])
    return np.concatenate([same.mean(0), (~same.any(2)).mean(0)[:, None]], axis=1)


def main() -> None:
    given = arguments(__doc__).parse_args()
    names = list(MODES)
    cells = [(mode, n) for n in VECTORS for mode in MODES if n >= MODES[mode][1]]
    lessons = {
        f"{names.index(mode)}-{n}-{character}-{seed}": lesson(mode, n, character, seed)
        for seed in range(given.seeds)
        for character in range(given.characters)
        for mode, n in cells
    }
    found = teach_all(lessons, given.folder, given.processes)

    def of(mode: str, n: int) -> list[list[dict]]:
        return [
            [found[f"{names.index(mode)}-{n}-{character}-{seed}"][-1] for seed in range(given.seeds)]
            for character in range(given.characters)
        ]

    print(f"{given.characters} characters x {given.seeds} seeds, {STEPS} steps of {BATCH}; percent (95 % interval)\n")
    print(f"| vectors | mode | {' | '.join(FIGURES)} | crossed, less off | right, less off |")
    print("|---" * (len(FIGURES) + 4) + "|")
    summary = []
    for mode, n in cells:
        values = {name: np.array([[f(one) for one in row] for row in of(mode, n)]) for name, f in FIGURES.items()}
        off = {name: np.array([[f(one) for one in row] for row in of("off", n)]) for name, f in FIGURES.items()}
        row = [points(value) for value in values.values()]
        row += [points(values[name] - off[name], sign=True) if mode != "off" else "" for name in ("crossed", "right")]
        print(f"| {n} | {mode} | {' | '.join(row)} |")
        less = {f"{name}, less off": interval(values[name] - off[name]) for name in values}
        summary.append({"vectors": n, "mode": mode, **{name: interval(v) for name, v in values.items()}, **less})
    print("\nWhich part's colour (column) each part (row) shows, percent of the pictures:")
    for mode, n in cells:
        print(f"\n{n} vectors, {mode}\n\n| | {' | '.join(PARTS)} | none of these |\n{'|---' * (len(PARTS) + 2)}|")
        for part, shares in zip(PARTS, confusion([one for seeds in of(mode, n) for one in seeds]), strict=True):
            print(f"| {part} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    (given.folder / "summary.json").write_text(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
