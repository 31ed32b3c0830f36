"""How much of what prompts say comes out right in the toy world, judged from the pictures' pixels.

    python -m benchmarks.toyworld.accuracy

500 captions as the world was trained on, of random scenes: parts with colours, positions, shapes, names and
what a character has by name, "no hat" and "no red shirt". About a minute on two cores.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import table
from benchmarks.toyworld import shipped, world

SEED = 500  # of the scenes; the training's are seeded otherwise
KINDS = ("parts", "parts, described", "parts, by name", "no hat", "denied colours")


def random_captions(count: int) -> list[tuple[world.Caption, str | None]]:
    """Captions that say something, with the name in them."""
    rng = np.random.default_rng(SEED)
    captions: list[tuple[world.Caption, str | None]] = []
    while len(captions) < count:
        scene, name = world.random_scene(rng)
        caption = world.caption_of(scene, rng, name)
        if caption.says or caption.denies:
            captions.append((caption, name))
    return captions


def findings(pipe: Any, count: int) -> dict[str, list[bool]]:
    """What is said, by kind -> whether it came out right, each time that one of `count` prompts says it."""
    captions = random_captions(count)
    right = defaultdict(list)
    for i in range(0, count, 50):
        some = captions[i : i + 50]
        pictures = shipped.generate(pipe, [caption.text for caption, _ in some], range(i, i + len(some)))
        for (caption, name), seen in zip(some, world.judge(pictures), strict=True):
            for attribute, is_right in world.right(caption, seen).items():
                if attribute in caption.denies:  # most other colours are right then: it says little of the part
                    right["denied colours"].append(is_right)
                    continue
                right[attribute].append(is_right)
                if attribute in world.PARTS:
                    right["parts"].append(is_right)
                    right["parts, by name" if name else "parts, described"].append(is_right)
                if attribute == "hat" and caption.says["hat"] is None:
                    right["no hat"].append(is_right)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--model", type=Path, default=shipped.FOLDER, help="the folder with toyworld.safetensors")
    given = parser.parse_args()
    started = time.perf_counter()
    right = findings(shipped.load(given.model), given.prompts)
    print(f"{given.prompts} prompts, {time.perf_counter() - started:.0f} s\n")
    chance = {"denied colours": " (by chance 87.5 %)"}
    rows = [
        [name + chance.get(name, ""), f"{100 * np.mean(right[name]):.1f} %", len(right[name])]
        for name in [*KINDS, *world.PARTS, "position", "head", "length"]
    ]
    print(table(["", "right", "of"], rows))


if __name__ == "__main__":
    main()
