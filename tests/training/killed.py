"""What test_killed.py runs: `python -m tests.training.killed <host> <first> <runs> <kills>` trains so many runs, drawn
by their numbers, each unbroken, and killed so many times; prints what came of each, a JSON list."""

import json
import logging
import random
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the optimizer would import, in each child anew

from tests.fakes import FakeHost, FakeModel, fake_embedding, fixed
from tests.killing import attempt, broken, left_by
from textinv_core.picture import Picture
from textinv_core.shuffle import MODES, ShuffleConfig
from textinv_core.training import record
from textinv_core.training.learn import Preview, learn
from textinv_core.training.settings import TrainSettings

STEPS = 60
TOYWORLD = Path(__file__).parents[2] / "textinv_core" / "toyworld"


class HalfModel(FakeModel):
    """In half precision, and overflowing for some noise, whichever process computes it."""

    def __init__(self):
        super().__init__(torch.float16)

    def predict(self, noisy, t, conditions):
        prediction = super().predict(noisy, t, conditions)
        if int(t.sum()) % 11 == 0 and prediction.requires_grad:
            prediction.register_hook(lambda gradient: gradient * float("inf"))
        return prediction


def drawn(number: int) -> dict[str, Any]:
    """The run of a number: its settings, shuffle, pictures, model, steps already trained, and steps between states."""
    draw = random.Random(number)

    def some(*values):
        return draw.choice(values)

    more = {"held_out": some(0, 1), "evaluate_every": some(7, 20), "keep": some(0, 2)}
    known = {field.name for field in fields(TrainSettings)}
    begun = some(0, 7)
    return {
        "settings": TrainSettings(
            ("a [name]", "[filewords] of [name]", "[name] [name], [filewords]"),
            steps=STEPS + begun,
            learning_rate=some("0.002", "0.01:10, 0.002:40, 0.0005", "0.02:30, 1e-3"),
            batch_size=some(1, 2, 3),
            gradient_accumulation=some(1, 2, 3),
            seed=number,
            gradient_clipping=some("off", "norm", "value"),
            loss_weighting=some("none", "min_snr"),
            save_every=some(0, 7, 10, 20),
            **{name: value for name, value in more.items() if name in known},
        ),
        "shuffle": ShuffleConfig(draw.choice(MODES), some("sample", "occurrence", "batch"), some(True, False), 11),
        "sizes": [(16, 24), *[some((16, 24), (24, 16), (16, 16)) for _ in range(4)]],
        "half": some(True, False, False),
        "begun": begun,
        "states": draw.randint(1, 25),
    }


def pictures(sizes, scale=1) -> list[Picture]:
    made = []
    for number, size in enumerate(sizes):
        height, width = (side * scale for side in size)
        pixels = fixed(20 + number, height, width, 3, dtype=torch.float32).sigmoid()
        mask = torch.linspace(0, 1, height * width).reshape(height, width) if number == 1 else torch.ones(height, width)
        made.append(Picture(pixels, mask, f"picture {number}", str(number)))
    return made


def main(host: Any, first: int, runs: int, kills: int) -> list[dict[str, Any]]:
    """host: where the embedding is trained; None for a fake one, a new one for each run."""
    torch.set_num_threads(1)
    logging.getLogger("textinv").setLevel(logging.ERROR)
    results = []
    for number in range(first, first + runs):
        run, chance = drawn(number), random.Random(-number - 1)
        record.STATE_STEPS, record.STATE_SHARE = run["states"], float("inf")

        def work(root: Path, run=run) -> None:
            if host is None:
                on, embedding = FakeHost(HalfModel() if run["half"] else FakeModel()), fake_embedding(step=run["begun"])
            else:
                on, embedding = host, host.create_embedding("cat", "figure hat", 3)
            events = learn(
                on,
                pictures(run["sizes"], 1 if host is None else 4),
                embedding,
                run["settings"],
                root,
                shuffle=run["shuffle"],
                preview=Preview(steps=1),
            )
            for _ in events:
                pass

        with tempfile.TemporaryDirectory() as temporary:
            unbroken, killed = Path(temporary, "unbroken"), Path(temporary, "killed")
            whole = attempt(work, unbroken)
            moments = broken(work, killed, whole, kills, chance)
            [expected], found = left_by(unbroken), left_by(killed)
        names = [name for one in found for name in {*one, *expected} if one.get(name) != expected.get(name)]
        results.append({"number": number, "runs": len(found), "killed": moments, "differs": sorted(names)})
    return results


def pipeline() -> Any:
    from textinv_core.hosts.diffusers import load

    return load(TOYWORLD / "toyworld.safetensors", TOYWORLD)


if __name__ == "__main__":
    host, *numbers = sys.argv[1:]
    print(json.dumps(main(pipeline() if host == "diffusers" else None, *map(int, numbers))))
