"""What the fixed loss knows of how well an embedding is learnt in the toy world, and what stopping by it is worth.

python -m benchmarks.stopping --folder FOLDER --characters 9
"""

from typing import Any

from benchmarks.lessons import Lesson, arguments, teach_all
from textinv_core.training.evaluation import steps_between
from textinv_core.training.presets import PRESETS
from textinv_core.training.settings import TrainSettings

LOOKS = (25, 50, 75, 100, 150, 200, 300, 400, 500)
# The pictures of a step in one batch, which a CPU has sooner done.
BATCH = TrainSettings.batch_size * TrainSettings.gradient_accumulation
EVERY = steps_between(TrainSettings(("",)))
PRESET: dict[str, Any] = {**PRESETS["subject"]["train"], "batch_size": BATCH}
KINDS: dict[str, dict[str, Any]] = {
    "preset": {},
    "rate 0.02": {"learning_rate": "0.02"},
    "held out 2": {"held_out": 2},
}


def lesson(changed: dict[str, Any], character: int, seed: int) -> Lesson:
    settings = {**PRESET, **changed}
    assert settings.pop("steps") == LOOKS[-1]
    vectors = PRESETS["subject"]["vectors"]
    return Lesson(character, vectors=vectors, seed=seed, settings=settings, looks=LOOKS, evaluate_every=EVERY)


def main() -> None:
    given = arguments(__doc__).parse_args()
    lessons = {
        (kind, character, seed): lesson(changed, character, seed)
        for kind, changed in KINDS.items()
        for seed in range(given.seeds)
        for character in range(given.characters)
    }
    taught = dict(zip(lessons, teach_all([*lessons.values()], given.folder, given.processes), strict=True))
    print(len(taught))


if __name__ == "__main__":
    main()
