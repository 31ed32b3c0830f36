"""Whether shuffling the vectors while they learn keeps one part's colour from turning up on another.

    python -m benchmarks.crosstalk --folder FOLDER

Every mode of `ShuffleConfig` with 1, 2, 4 and 8 vectors, over `characters` x `seeds`: the toy world's held-out
characters, whose parts all have different colours, so that a wrong colour says where it came from.

`crossed`: the share of pictures in which some part clearly has the colour of another part of the character. `right`: of
parts with their own colour. `edited`: of pictures that follow a change asked for by prompt; `kept`: of the other parts
right in those. `half ...`: the same in pictures of prompts with the first or the last half of the vectors. The first
row describes the characters in words: what the model itself gets wrong.

Each mode is compared with no shuffling, lesson by lesson. Intervals are 95 % bootstraps over characters and seeds.
Modes that put the vectors in the very same orders are taught once: `dynamic` is `all` with 2 vectors, `between` with 4
and more, and `progressive` without unlocking is `between`; none but `off` does anything with 1, and only `all` with 2.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lessons import Lesson, accuracy, arguments, described, teach_all
from benchmarks.tables import interval, percent, table
from benchmarks.toyworld import world

VECTORS = (1, 2, 4, 8)
# Mode -> its settings, and the fewest vectors with which it is a mode of its own.
MODES: dict[str, tuple[dict[str, Any], int]] = {
    "off": ({}, 1),
    "all": ({"mode": "all"}, 2),
    "trailing": ({"mode": "trailing"}, 4),
    "leading": ({"mode": "leading"}, 4),
    "between": ({"mode": "between"}, 4),
    # One by one: of 4 and 8 vectors the last comes into use after half of the steps.
    "off, unlocking": ({"progressive_words": True}, 4),
    "progressive, unlocking": ({"mode": "progressive", "progressive_words": True}, 4),
    "dynamic, unlocking": ({"mode": "dynamic", "progressive_words": True}, 4),
}
BATCH = 4


def lesson(mode: str, vectors: int, character: int, seed: int, steps: int = 100, rate: str = "0.005") -> Lesson:
    shuffle = dict(MODES[mode][0])
    if "progressive_words" in shuffle:
        shuffle["unlock_every"] = 2 * steps // 3 // vectors
    settings = {"batch_size": BATCH, "learning_rate": rate}
    return Lesson(
        character,
        vectors=vectors,
        seed=1000 * character + seed,  # so that no two lessons have places or noise in common
        settings=settings,
        shuffle=shuffle,
        looks=(steps,),
        halves=vectors > 1,
    )


Look = Mapping[str, Any]  # what `judge` said of a lesson's pictures
Figure = Callable[[Look], float]


def same_colours(look: Look) -> np.ndarray:
    """Whether a part clearly shows the colour a part should have, bool [pictures, parts shown, parts that have it]."""
    shown, own = np.array(look["shown"], dtype=object), np.array(look["own"], dtype=object)
    return (shown[:, :, None] == own) & (np.array(look["far"]) < world.CLEAR)[:, :, None]


def crossed(look: Look) -> float:
    """The share of pictures in which a part shows another's colour; having no hat is not a colour."""
    colours = np.array([colour is not None for colour in look["own"]])
    return float((same_colours(look) & colours & ~np.eye(len(colours), dtype=bool)).any((1, 2)).mean())


def edited(look: Look) -> float:
    return float(np.mean(look["edited"]))


def kept(look: Look) -> float:
    return float(np.mean(look["kept"]))


def of_halves(figure: Figure) -> Figure:
    """A figure of the pictures made with half of the vectors; of all pictures where there is one vector."""
    return lambda look: float(np.mean([figure(half) for half in look.get("halves", [look])]))


FIGURES: dict[str, Figure] = {
    "crossed": crossed,
    "right": accuracy,
    "edited": edited,
    "kept": kept,
    "half crossed": of_halves(crossed),
    "half right": of_halves(accuracy),
    "half edited": of_halves(edited),
}
COMPARED = ("crossed", "edited", "half crossed", "half right", "half edited")


def confusion(looks: Sequence[Look]) -> np.ndarray:
    """[parts, parts + 1]: how often a part (row) shows the colour of a part (column), or in the last none of them."""
    same = np.concatenate([same_colours(look) for look in looks])
    return np.concatenate([same.mean(0), (~same.any(2)).mean(0)[:, None]], axis=1)


def draw_figure(summary: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Dots with their intervals, for each mode and number of vectors; needs matplotlib."""
    from matplotlib import pyplot

    names = {"crossed": "prompts with all vectors", "half crossed": "prompts with half of the vectors"}
    drawing, axes = pyplot.subplots(1, len(names), figsize=(11, 4.2))
    for axis, (name, title) in zip(axes, names.items(), strict=True):
        for i, mode in enumerate(MODES):
            here = [(VECTORS.index(row["vectors"]), *row[name]) for row in summary if row["mode"] == mode]
            at, middle, low, high = (np.array(values) for values in zip(*here, strict=True))
            at = at + (i - len(MODES) / 2) * 0.1
            errors = 100 * np.array([middle - low, high - middle])
            axis.errorbar(
                at, 100 * middle, errors, fmt="o", capsize=2, label=mode, color="black" if i == 0 else f"C{i}"
            )
        axis.set_xticks(range(len(VECTORS)), [f"{n} vector{'s' if n > 1 else ''}" for n in VECTORS])
        axis.set_title(title, fontsize=11)
        axis.grid(axis="y", alpha=0.3)
        axis.set_ylim(0, 65)
    axes[0].set_ylabel("pictures with a colour on the wrong part, %")
    axes[0].legend(fontsize=8, loc="upper left")
    drawing.tight_layout()
    drawing.savefig(path, dpi=110)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--characters", type=int, default=10)
    parser.add_argument("--figure", type=Path, help="a picture file for what docs/shuffling.md shows")
    parser.add_argument("--vectors", type=int, nargs="+", default=VECTORS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", default="0.005")
    given = parser.parse_args()
    if given.figure:
        import matplotlib as matplotlib  # now, so that it is not missed after half an hour
    cells = [(mode, n) for n in given.vectors for mode in MODES if n >= MODES[mode][1]]
    places = [(character, seed) for seed in range(given.seeds) for character in range(given.characters)]
    lessons = [lesson(mode, n, *place, given.steps, given.rate) for place in places for mode, n in cells]
    taught = iter(teach_all(lessons, given.folder, given.processes))
    by_lesson = {(cell, place): next(taught)[-1] for place in places for cell in cells}

    def looks(mode: str, n: int) -> list[list[Look]]:
        """By character and seed."""
        return [
            [by_lesson[(mode, n), (character, seed)] for seed in range(given.seeds)]
            for character in range(given.characters)
        ]

    def by_place(figure: Figure, of: Sequence[Sequence[Look]]) -> np.ndarray:
        return np.array([[figure(look) for look in row] for row in of])

    setting = f"{given.steps} steps of {BATCH} at {given.rate}"
    print(f"{given.characters} characters x {given.seeds} seeds, {setting}; percent (95 % interval)\n")
    titles = ["vectors", "mode", *FIGURES, "first, last half right", *(f"{name}, less off" for name in COMPARED)]
    words = [[described(character, 24)] for character in range(given.characters)]
    in_words = ["", "in words", *(percent(by_place(figure, words)) for figure in (crossed, accuracy))]
    rows, summary = [in_words + [""] * (len(titles) - len(in_words))], []
    for mode, n in cells:
        values = {name: by_place(figure, looks(mode, n)) for name, figure in FIGURES.items()}
        less = {name: values[name] - by_place(figure, looks("off", n)) for name, figure in FIGURES.items()}
        by_half = [[[accuracy(half) for half in look.get("halves", [])] for look in row] for row in looks(mode, n)]
        halves = ", ".join(f"{100 * share:.0f}" for share in np.mean(by_half, axis=(0, 1)))
        compared = [percent(less[name], sign=True) if mode != "off" else "" for name in COMPARED]
        rows.append([n, mode, *map(percent, values.values()), halves, *compared])
        summary.append({"vectors": n, "mode": mode, **{name: interval(each) for name, each in values.items()}})
        summary[-1] |= {f"{name}, less off": interval(each) for name, each in less.items()}
    print(table(titles, rows))
    print("\n`crossed` by character, percent:\n")
    shares = ([n, mode, *(f"{100 * x:.0f}" for x in by_place(crossed, looks(mode, n)).mean(1))] for mode, n in cells)
    print(table(["vectors", "mode", *map(str, range(given.characters))], shares))
    print(
        "\nWhich part's colour (column) each part (row) clearly shows, percent of the pictures; in brackets with half"
    )
    print("of the vectors:")
    for mode, n in cells:
        every = [look for row in looks(mode, n) for look in row]
        whole, half = confusion(every), confusion([half for look in every for half in look.get("halves", [look])])
        rows = (
            [part, *(f"{100 * a:.1f} ({100 * b:.1f})" for a, b in zip(*shares, strict=True))]
            for part, *shares in zip(world.OWN_PARTS, whole, half, strict=True)
        )
        print(f"\n{n} vectors, {mode}\n\n{table(['', *world.OWN_PARTS, 'none of these'], rows)}")
    (given.folder / "summary.json").write_text(json.dumps(summary, indent=2))
    if given.figure:
        draw_figure(summary, given.figure)


if __name__ == "__main__":
    main()
