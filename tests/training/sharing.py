"""What each process of test_parallel.py does: `python sharing.py <what> <folder>`, alone or with others."""

import sys
import time
import traceback
from pathlib import Path

import torch

from tests.fakes import FakeModel, fake_embedding, fake_example, run_training, train
from textinv_core.errors import TrainingError
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.parallel import Processes, end, join
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Training

LINES = ("a [name] of [name]", "[filewords] and [name]", "[filewords]")


class ConvModel(FakeModel):
    """The text encoders of the fake model, and a convolutional network that its output is added in."""

    def __post_init__(self):
        super().__post_init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1),
            torch.nn.GroupNorm(4, 16),
            torch.nn.SiLU(),
            torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
            torch.nn.SiLU(),
            torch.nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1),
        ).requires_grad_(False)

    def predict(self, noisy, t, conditions):
        context = torch.stack([condition.rows for condition in conditions])[:, :, None, None]
        return self.net(noisy / (self.noise_schedule.noise[t] + 1).float()[:, None, None, None] + context) + context


def in_batch(number, processes, change):
    """A change of predictions that comes with batch `number`, whichever process runs it."""

    def maybe(prediction, call):
        return change(prediction) if processes.rank + (call - 1) * processes.count == number else prediction

    return maybe


def overflow(prediction):
    prediction.register_hook(lambda gradient: gradient * float("inf"))
    return prediction


def run_short(prediction):
    raise torch.OutOfMemoryError("CUDA out of memory")


def examples(sizes):
    """Pictures of several sizes, the last with a mask and a caption that names the embedding."""
    *others, last = enumerate(sizes)
    mask = torch.linspace(0, 2, last[1][0] * last[1][1]).reshape(last[1])
    return [*(fake_example(i, size) for i, size in others), fake_example(*last, "embedding:cat", mask)]


def settings(lines=LINES, **more):
    return TrainSettings(lines, **{"steps": 6, "batch_size": 2, "gradient_accumulation": 4, **more})


def trainings(processes):
    """Name -> model, settings and shuffle of a training."""
    clipped = settings(gradient_clipping="norm", clip_at=0.05)
    occurrence = ShuffleConfig("all", "occurrence")
    half = FakeModel(torch.float16, in_batch(6, processes, overflow))
    nan = FakeModel(change=in_batch(11, processes, lambda prediction: prediction * float("nan")))
    short = FakeModel(change=in_batch(5, processes, run_short))
    return {
        "fake": (FakeModel(), clipped, occurrence),
        "conv": (ConvModel(), clipped, ShuffleConfig("all")),
        "half": (half, settings(LINES[:2]), None),
        "nan": (nan, settings(), None),
        "short": (short, settings(), occurrence),
    }


def run_all(processes: Processes, folder: Path):
    """Leave what was seen of each training in `<training>-<rank>.pt`."""
    sizes = [(4, 6)] * 4 + [(6, 4)] * 3 + [(8, 8)] * 2
    for name, (model, how, shuffle) in trainings(processes).items():
        losses, vectors, error = [], [], ""
        try:
            for progress in train(model, examples(sizes), fake_embedding(4, 3), how, shuffle, processes):
                losses.append(progress.loss)
                vectors.append(dict(progress.learnt.vectors))
        except TrainingError as stopped:
            error = str(stopped)
        seen = {"losses": losses, "vectors": vectors, "error": error, "calls": len(model.calls)}
        seen["checkpointed"] = model.checkpointed
        torch.save(seen, folder / f"{name}-{processes.rank}.pt")


def run_evaluated(processes: Processes, folder: Path):
    """Leave the fixed losses of a training in `evaluated-<rank>.pt`."""
    model, learnable = ConvModel(), LearnableEmbedding(fake_embedding(4, 3))
    given = examples([(4, 6)] * 4 + [(6, 4)] * 3 + [(8, 8)] * 2)
    training = Training(model, given, learnable, settings(batch_size=3, held_out=4), processes)
    losses = [training.evaluate().loss, *(training.evaluate().loss for _ in training.steps())]
    torch.save({"losses": losses}, folder / f"evaluated-{processes.rank}.pt")


def run_and_fail(processes: Processes, folder: Path, wait: bool):
    """Processes but the first fail after step 2. wait: the first is then busy with something that takes long."""

    def on_step(progress):
        if progress.step == 2 and processes.rank > 0:
            raise FloatingPointError("something else")
        if progress.step == 2 and wait:
            time.sleep(120)

    arguments = FakeModel(), examples([(4, 6)] * 3), fake_embedding(4, 3), settings(), folder
    run_training(*arguments, on_step=on_step, processes=processes)


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    code = None
    try:
        if what == "all":
            processes = join()
            run_all(processes, folder)
            run_evaluated(processes, folder)
        else:
            run_and_fail(join(), folder, what == "fail-while-busy")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    end(code)
