"""How soon an embedding is learnt in the toy world, by the recipes of other trainers and by ours.

    python -m benchmarks.learning --folder FOLDER --set held_out --figure docs/learning.png

Every recipe is taught the same lessons: eight pictures of a character the world has no name for, or in a style (any
characters, in the same clothes before the same background). Pictures with the embedding are judged from their pixels,
after as many pictures seen as `GRID` says. `right` is the share of the parts that are right, `edited` the share of
pictures that follow a change asked for by prompt, and `kept` the share of the other parts that are right in those.

`N %`: pictures seen until the first look with so much right, the median over lessons; in brackets how many lessons got
there. Where some were there by the first look, which `FROM` says, that is told below: they may have been sooner.
`seconds`: what as many take, without looks, at the pace of the row's quickest lesson, as others may have shared the
machine. `times as quick`: the seconds of A1111's settings to 90 %, divided by the row's. `edited` and `kept` are means
over lessons: `there`, at the first look with 90 % right, and in the end, after all `pictures`, with `right`.
`- preset`: less today's preset, lesson by lesson. With 95 % bootstrap intervals.

Choices were made on the set `development` alone, and on characters 50 to 61, which no set has. All recipes with 3 seeds
take hours on two cores.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lessons import REACHED, Lesson, accuracy, arguments, teach_all
from benchmarks.tables import percent, table, times, until
from textinv_core.training.presets import PRESETS
from textinv_core.training.settings import TrainSettings

# Characters that no other table has.
SETS = {
    "development": {"subject": range(20, 26), "style": range(20, 23)},
    "held_out": {"subject": range(30, 42), "style": range(30, 36)},
}
# Pictures seen when it is looked at.
GRID = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 100, 120, 160, 200, 240, 320, 400, 600, 800, 1200, 1600, 2000, 4000)
STYLE_VECTORS = 4  # of recipes that name no number for styles: one is too few (`sweeps.py`)

Changed = Mapping[str, Any]  # what is other than by default: settings of training, and those of a lesson


def of_preset(name: str) -> Changed:
    train = {"learning_rate": TrainSettings.learning_rate, **PRESETS[name]["train"]}
    del train["steps"]
    # The pictures of a step in one batch, which a CPU has sooner done.
    pictures = train.pop("gradient_accumulation", TrainSettings.gradient_accumulation)
    return {"vectors": PRESETS[name]["vectors"], "batch_size": pictures, **train}


def of_field(changed: Changed) -> dict[str, Changed]:
    """What trainers recommend, who tell subjects from styles by the template alone."""
    return {"subject": changed, "style": {**changed, "vectors": max(changed["vectors"], STYLE_VECTORS)}}


# What trainers' own documentation recommends: rates as they are after scaling, accumulated batches as one. The first is
# what others are compared with.
RECIPES: dict[str, dict[str, Changed]] = {
    "A1111": of_field({"vectors": 1, "learning_rate": "0.005", "batch_size": 1, "init_text": "*"}),
    "diffusers": of_field({"vectors": 1, "learning_rate": "0.002", "batch_size": 4}),
    "invoke-training": of_field({"vectors": 4, "learning_rate": "0.004", "batch_size": 1}),
    "OneTrainer": of_field({"vectors": 1, "learning_rate": "0.0003", "batch_size": 1, "init_text": "*"}),
    "kohya": of_field({"vectors": 4, "learning_rate": "1e-6", "batch_size": 4}),
    "DTI": of_field({"vectors": 1, "optimizer": "sphere", "learning_rate": "0.01", "batch_size": 4}),
    "preset": {"subject": of_preset("subject"), "style": of_preset("style")},
    "preset fast": {"subject": of_preset("fast"), "style": of_preset("fast-style")},
}
# With as many vectors as our fast one for styles.
RECIPES["A1111, 8 vectors"] = {"style": {**RECIPES["A1111"]["style"], "vectors": 8}}
# Pictures seen in all. DTI's are those of its 400 steps: at 0.01 radians a quarter of them gets nowhere.
UNTIL = {
    "subject": {"DTI": 1600, "preset": 2000, "preset fast": 200},
    "style": {"A1111": 1200, "DTI": 1600, "preset": 4000, "preset fast": 400},
}
OTHERS_UNTIL = {"subject": 400, "style": 800}
# The first look, before most lessons are 75 % right; `sooner` counts the others.
FROM = {
    "subject": {"A1111": 40, "invoke-training": 24, "DTI": 400, "preset fast": 8},
    "style": {"A1111": 80, "invoke-training": 80, "DTI": 400, "preset": 400, "preset fast": 16},
}
OTHERS_FROM = 160


def lesson(recipe: str, kind: str, character: int, seed: int, model: str = "") -> Lesson:
    settings = dict(RECIPES[recipe][kind])
    own = {key: settings.pop(key) for key in ("vectors", "init_text") if key in settings}
    name, _, _ = recipe.partition(",")
    end = UNTIL[kind].get(name, OTHERS_UNTIL[kind])
    begin = FROM[kind].get(name, OTHERS_FROM)
    looks = tuple(pictures // settings["batch_size"] for pictures in GRID if begin <= pictures <= end)
    return Lesson(character, kind, seed=seed, settings=settings, looks=looks, sparing=True, model=model, **own)


Looks = Sequence[Mapping[str, Any]]  # of one lesson
Lessons = Sequence[Sequence[Looks]]  # by character and seed


def first_with(share: float, looks: Looks) -> Mapping[str, Any] | None:
    return next((look for look in looks if accuracy(look) >= share), None)


def steps_to(share: float, looks: Looks) -> float:
    look = first_with(share, looks)
    return math.inf if look is None else look["step"]


def by_lesson(figure: Callable[[Looks], float], lessons: Lessons) -> np.ndarray:
    return np.array([[figure(looks) for looks in seeds] for seeds in lessons], dtype=float)


def pace(lessons: Lessons) -> float:
    """Seconds a step, of the quickest."""
    return by_lesson(lambda looks: looks[-1]["seconds"] / looks[-1]["step"], lessons).min()


IN_THE_END: dict[str, Callable[[Looks], float]] = {
    "right": lambda looks: accuracy(looks[-1]),
    "edited": lambda looks: float(np.mean(looks[-1]["edited"])),
    "kept": lambda looks: float(np.mean(looks[-1]["kept"])),
}
SOON = (*(f"{share:.0%} at" for share in REACHED), "seconds to 90 %", "times as quick", "edited there", "kept there")
END = ("pictures", *IN_THE_END, *(f"{name} - preset" for name in IN_THE_END))


def how_soon(lessons: Lessons, first: Lessons, batch: int) -> list[str]:
    """A row's cells under SOON. first: the same lessons by what this is compared with; batch: pictures a step."""
    steps = {share: by_lesson(lambda looks, share=share: steps_to(share, looks), lessons) for share in REACHED}
    seconds = [by_lesson(lambda looks: steps_to(0.9, looks), each) * pace(each) for each in (lessons, first)]
    at_90 = [look for seeds in lessons for looks in seeds if (look := first_with(0.9, looks))]
    return [
        *(f"{until(batch * of)} [{np.isfinite(of).sum()}/{of.size}]" for of in steps.values()),
        until(seconds[0]),
        "" if lessons is first else times(*seconds),
        *(
            f"{100 * np.mean([np.mean(look[name]) for look in at_90]):.0f}" if at_90 else ""
            for name in ("edited", "kept")
        ),
    ]


def in_the_end(lessons: Lessons, preset: Lessons, batch: int) -> list[str]:
    """A row's cells under END. preset: the same lessons by today's."""
    return [
        str(batch * lessons[0][0][-1]["step"]),
        *(percent(by_lesson(figure, lessons)) for figure in IN_THE_END.values()),
        *(
            "" if lessons is preset else percent(by_lesson(figure, lessons) - by_lesson(figure, preset), sign=True)
            for figure in IN_THE_END.values()
        ),
    ]


def sooner(lessons: Lessons) -> str:
    """In how many lessons the first look was too late to tell when they got there; nothing where it was not."""
    right = by_lesson(lambda looks: accuracy(looks[0]), lessons)
    found = [f"{share:.0%} right in {late} of {right.size}" for share in REACHED if (late := (right >= share).sum())]
    return ", ".join(found)


def curve(figure: str, lessons: Lessons) -> tuple[list[float], list[float]]:
    """Seconds, and the percentage of `right` or `edited` then, the mean over lessons, where all were asked."""
    seconds, shares = [], []
    for i, look in enumerate(lessons[0][0]):
        looks = [each[i] for seeds in lessons for each in seeds]
        if figure == "right" or all(figure in each for each in looks):
            of_each = [accuracy(each) if figure == "right" else np.mean(each[figure]) for each in looks]
            seconds.append(look["step"] * pace(lessons))
            shares.append(100 * float(np.mean(of_each)))
    return seconds, shares


def draw_figure(taught: Mapping[str, Mapping[str, Lessons]], path: Path) -> None:
    """What is right, and what follows changes, against seconds, for subjects and styles; needs matplotlib."""
    from matplotlib import pyplot

    drawn = [recipe for recipe in RECIPES if "," not in recipe]
    drawing, axes = pyplot.subplots(
        2, len(taught), figsize=(5.5 * len(taught), 7.4), sharex="col", sharey="row", squeeze=False
    )
    for (row, figure), (column, kind) in ((r, c) for r in enumerate(("right", "edited")) for c in enumerate(taught)):
        axis = axes[row][column]
        for i, recipe in ((i, recipe) for i, recipe in enumerate(drawn) if recipe in taught[kind]):
            ours = recipe.startswith("preset")
            style = {"color": "black" if ours else f"C{i}", "linewidth": 2.2 if ours else 1.2}
            style["linestyle"] = ":" if recipe == "preset" else "-"
            axis.plot(*curve(figure, taught[kind][recipe]), label=recipe, **style)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    for column, kind in enumerate(taught):
        axes[0][column].set_title({"subject": "a character", "style": "a style"}[kind], fontsize=11)
        axes[1][column].set_xlabel("seconds of training")
    axes[0][0].set_ylabel("parts that are right, %")
    axes[1][0].set_ylabel("changes asked for that are followed, %")
    drawing.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(drawn), fontsize=9)
    drawing.tight_layout(rect=(0, 0.04, 1, 1))
    drawing.savefig(path, dpi=110)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--set", choices=[*SETS], default="development", help="of characters; %(default)s")
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=[*RECIPES],
        default=[*RECIPES],
        metavar="RECIPE",
        help=f"of {', '.join(map(repr, RECIPES))}; all, and the first and 'preset', today's, always",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=[*UNTIL],
        default=[*UNTIL],
        metavar="KIND",
        help=f"{' and '.join(UNTIL)}, or one of them",
    )
    parser.add_argument(
        "--model",
        default="",
        help="a folder with another toy world than the shipped one, as benchmarks.toyworld.train exports it",
    )
    parser.add_argument("--figure", type=Path, help="a picture file for what docs/learning.md shows")
    given = parser.parse_args()
    if given.figure:
        import matplotlib as matplotlib  # now, so that it is not missed after an hour
    recipes = list(dict.fromkeys(["A1111", *given.recipes, "preset"]))
    lessons = {
        kind: {
            recipe: [
                [lesson(recipe, kind, character, seed, given.model) for seed in range(given.seeds)]
                for character in SETS[given.set][kind]
            ]
            for recipe in recipes
            if kind in RECIPES[recipe]
        }
        for kind in given.kinds
    }
    flat = [one for of_kind in lessons.values() for of in of_kind.values() for seeds in of for one in seeds]
    every = iter(teach_all(flat, given.folder, given.processes))
    taught = {
        kind: {recipe: [[next(every) for _ in seeds] for seeds in of] for recipe, of in of_kind.items()}
        for kind, of_kind in lessons.items()
    }
    for kind, rows in taught.items():
        print(f"\n{kind}: {len(SETS[given.set][kind])} of the set {given.set} x {given.seeds} seeds\n")
        batches = {recipe: RECIPES[recipe][kind]["batch_size"] for recipe in rows}
        soon = ([recipe, *how_soon(of, rows["A1111"], batches[recipe])] for recipe, of in rows.items())
        end = ([recipe, *in_the_end(of, rows["preset"], batches[recipe])] for recipe, of in rows.items())
        print(f"{table(['recipe', *SOON], soon)}\n")
        for recipe, of in rows.items():
            if late := sooner(of):
                print(f"{recipe}: {late} at the first look, after {batches[recipe] * of[0][0][0]['step']}, or sooner")
        print(f"\nIn the end:\n\n{table(['recipe', *END], end)}")
    if given.figure:
        draw_figure(taught, given.figure)


if __name__ == "__main__":
    main()
