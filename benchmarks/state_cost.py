"""What keeping a run's exact state costs, as share of the run's time, and how much work a crash can take.

    python -m benchmarks.state_cost [--steps 600]

A training in the toy world, whose steps take milliseconds where others take seconds, so that more states are written
per second than in any other run: `share` is the time that all writes of states took together, of the run's. `write` is
the median of one by itself, of embeddings of SD1.5's and SDXL's widths; `most lost` is how long the longest stretch
between two states was.
"""

import argparse
import tempfile
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.lessons import Lesson, examples, model
from benchmarks.tables import table
from textinv_core.prompts import TEMPLATES
from textinv_core.training.folder import RunFolder
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.run import run
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Training

WRITES = 30
SIZES = {"SD1.5, 2 vectors": (2, (768,)), "SDXL, 16 vectors": (16, (768, 1280)), "SDXL, 75 vectors": (75, (768, 1280))}


def state(vectors: int, widths: tuple[int, ...]) -> dict[str, object]:
    """What a training of so many vectors for each encoder has."""
    tensors = [torch.randn(vectors, width) for width in widths]
    rows: list[Tensor] = [row for tensor in tensors for row in tensor.unbind()]
    optimizer = torch.optim.AdamW(rows)
    for row in rows:
        row.grad = torch.randn_like(row)
    optimizer.step()
    return {"step": 0, "tensors": tensors, "good": tensors, "optimizer": optimizer.state_dict()}


def write_seconds(folder: RunFolder, of: dict[str, object]) -> float:
    seconds = []
    for step in range(WRITES):
        before = time.perf_counter()
        folder.save_state({**of, "step": step})
        seconds.append(time.perf_counter() - before)
    return median(seconds)


class Timed(RunFolder):
    """Notes when each state was written, and how long that took."""

    def save_state(self, state: dict[str, object]) -> None:
        before = time.perf_counter()
        super().save_state(state)
        writes.append((before, time.perf_counter() - before))


writes: list[tuple[float, float]] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk; the system's may be memory
        rows = []
        for label, (vectors, widths) in SIZES.items():
            own = RunFolder.new(Path(folder), "writes")
            rows.append([label, f"{1000 * write_seconds(own, state(vectors, widths)):.1f}"])
        print(table(["embedding", "write, ms"], rows), end="\n\n")

        settings = TrainSettings(TEMPLATES["subject"], steps=given.steps, batch_size=4, gradient_accumulation=1)
        learnable = LearnableEmbedding(model().create_embedding("somebody", "figure", 2))
        pictures = examples(Lesson(0))
        own = Timed(RunFolder.new(Path(folder), "somebody").path)
        largest = max((example.latent for example in pictures), key=torch.numel)
        with model().trainable(largest, 4) as trainable:
            training = Training(trainable, pictures, learnable, settings)
            began = time.perf_counter()
            with closing(run(training, own)) as events:
                for _ in events:
                    pass
            ended = time.perf_counter()
    took = ended - began
    times = [began, *(at for at, _ in writes), ended]
    longest = max(after - before for before, after in pairwise(times))
    cells = [given.steps, f"{took:.1f}", len(writes), f"{100 * sum(s for _, s in writes) / took:.2f} %"]
    print(table(["steps", "seconds", "states", "share", "most lost, s"], [[*cells, f"{longest:.1f}"]]))


if __name__ == "__main__":
    main()
