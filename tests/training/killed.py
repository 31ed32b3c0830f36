"""What test_killed.py runs: `python -m tests.training.killed <what> <first> <runs> <kills>` trains so many runs, drawn
by their numbers, each unbroken, and killed so many times; prints what came of each, a JSON list."""

import json
import logging
import random
import sys
import tempfile
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the optimizer would import, in each child anew

from tests.fakes import FakeHost, FakeModel, fake_embedding, fixed
from tests.killing import attempt, broken, left_by
from textinv_core.picture import Picture
from textinv_core.shuffle import MODES, ShuffleConfig
from textinv_core.training import record
from textinv_core.training.jobs import Job, run_jobs
from textinv_core.training.learn import Preview, learn
from textinv_core.training.parallel import ALONE, Processes, join
from textinv_core.training.settings import OPTIMIZERS, TrainSettings

STEPS = 60
TOYWORLD = Path(__file__).parents[2] / "textinv_core" / "toyworld"


class HalfModel(FakeModel):
    """In half precision, where gradients overflow until the loss is scaled less."""

    def __init__(self):
        super().__init__(torch.float16)

    def predict(self, noisy, t, conditions):
        prediction = super().predict(noisy, t, conditions)
        if prediction.requires_grad:
            prediction.register_hook(lambda gradient: gradient * 512 / 512)
        return prediction


def drawn(number: int) -> dict[str, Any]:
    """The run of a number: its settings, shuffle, pictures, model, steps already trained, and steps between states."""
    draw = random.Random(number)

    def some(*values):
        return draw.choice(values)

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
            evaluate_every=some(5, 7, 20),
            held_out=some(0, 1),
            keep=some(0, 2),
            early_stop=some("off", "off", "patience", "dvar"),
            patience=3,
            optimizer=OPTIMIZERS[number % 2],
        ),
        "shuffle": ShuffleConfig(draw.choice(MODES), some("sample", "occurrence", "batch"), some(True, False), 11),
        "sizes": [(16, 24), *[some((16, 24), (24, 16), (16, 16)) for _ in range(4)]],
        "half": number % 3 == 1,
        "preview": Preview(every=some(0, 9, 20), steps=1),
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


def train(run: dict[str, Any], root: Path, host: Any, processes: Processes = ALONE, name: str = "cat") -> None:
    """host: None for a fake one."""
    if host is None:
        scale, host = 1, FakeHost(HalfModel() if run["half"] else FakeModel())
        embedding = replace(fake_embedding(step=run["begun"]), name=name)
    else:
        scale, embedding = 4, host.create_embedding(name, "figure hat", 3)
    told, shuffle = run["settings"], run["shuffle"]
    made = pictures(run["sizes"], scale)
    for _ in learn(host, made, embedding, told, root, shuffle=shuffle, preview=run["preview"], processes=processes):
        pass


def train_jobs(run: dict[str, Any], root: Path) -> None:
    """Three, of a third of the steps."""
    short = {**run, "settings": replace(run["settings"], steps=run["begun"] + STEPS // 3)}
    jobs = [Job(f"cat-{number}", {}) for number in range(3)]
    outcomes = run_jobs(jobs, root, lambda job, _: train(short, root, None, name=job.name))
    assert all(outcome.state in ("done", "there") for outcome in outcomes), outcomes


def main(what: str, host: Any, first: int, runs: int, kills: int) -> list[dict[str, Any]]:
    """what: `jobs`, or `shared` by two processes; else on `host`, or on a fake one where that is None."""
    torch.set_num_threads(1)
    log, results = logging.getLogger("textinv"), []
    log.propagate = False
    log.setLevel(logging.INFO)
    count = 2 if what == "shared" else 1
    for number in range(first, first + runs):
        run, chance = drawn(number), random.Random(-number - 1)
        if what == "jobs":
            run["states"] = 3
        if what == "shared":
            run["settings"] = replace(run["settings"], gradient_accumulation=2)
        record.STATE_STEPS, record.STATE_SHARE = run["states"], float("inf")

        def work(root: Path, run=run) -> None:
            log.addHandler(logging.FileHandler(root.parent / f"{root.name}.log"))
            if what == "jobs":
                train_jobs(run, root)
            else:
                train(run, root, host, join())

        with tempfile.TemporaryDirectory() as temporary:
            unbroken, killed = Path(temporary, "unbroken"), Path(temporary, "killed")
            whole = attempt(work, unbroken)
            if count > 1:
                whole = attempt(work, Path(temporary, "shared"), count)
            moments = broken(work, killed, whole, kills, chance, count)
            expected, found = left_by(unbroken), left_by(killed)
            went_on = (killed.parent / "killed.log").read_text().count("goes on from step")
        differing = [
            name
            for own, other in zip_longest(found, expected, fillvalue={})
            for name in {*own, *other}
            if own.get(name) != other.get(name)
        ]
        results.append({"number": number, "killed": moments, "went on": went_on, "differs": sorted(differing)})
    return results


def pipeline() -> Any:
    from textinv_core.hosts.diffusers import load

    return load(TOYWORLD / "toyworld.safetensors", TOYWORLD)


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    print(json.dumps(main(what, pipeline() if what == "diffusers" else None, *map(int, numbers))))
