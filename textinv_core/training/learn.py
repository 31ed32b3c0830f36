"""A training from pictures to what was learnt: the one sequence behind the node, the command and what comes next."""

import logging
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..embedding import Embedding, with_model
from ..hosts.base import Host, Sampling
from ..picture import Picture
from ..shuffle import ShuffleConfig
from .examples import Example, crop_to_multiple, encoded_examples
from .folder import RunFolder
from .learnable import LearnableEmbedding
from .parallel import ALONE, Processes
from .run import Ended, Saved, run
from .settings import TrainSettings
from .training import Step, Training, check

log = logging.getLogger("textinv")


@dataclass(frozen=True)
class Preview:
    """A picture to generate when the training is over.

    line: what to generate, as a template's line; "" takes the template's first. steps: of the sampler, >= 1.
    """

    line: str = ""
    steps: int = 20


@dataclass(frozen=True)
class Started:
    """The pictures are encoded and the model is loaded. folder: None for processes of a shared training but the first.

    pictures: how many are learnt from. embedding: as it is before.
    """

    folder: RunFolder | None
    pictures: int
    embedding: Embedding


@dataclass(frozen=True)
class Previewed:
    """Pictures made with what was learnt, float32 [n, H, W, 3] in 0..1."""

    pictures: Tensor


Event = Started | Step | Saved | Previewed | Ended


def learn(
    host: Host,
    pictures: Sequence[Picture],
    embedding: Embedding,
    settings: TrainSettings,
    root: Path,
    *,
    shuffle: ShuffleConfig | None = None,
    processes: Processes = ALONE,
    preview: Preview | None = None,
) -> Generator[Event, None, None]:
    """Train `embedding` on `pictures`, in a new run's folder below `root`, and tell what happens as it happens.

    It begins with Started and ends with Ended, whose `learnt` is an Embedding. To finish early is to stop consuming;
    what was learnt is in the folder then (see `run`). Consume it in one thread, and close it (`contextlib.closing`)
    where that may end before it does: until then the model is set to be trained on.

    Whatever keeps the training from starting is raised before any work is done. Raises UserError for what the person
    can mend, and what `Training.advance` and the host raise. A preview that fails, or is interrupted, is left out.
    """
    host.check_fits(embedding)
    multiple = host.latent_multiple
    height, width = crop_to_multiple(pictures[0].pixels, multiple).shape[:2] if pictures else (0, 0)
    facts = {**host.facts(), "modelspec.resolution": f"{width}x{height}"}
    learnable = LearnableEmbedding(with_model(embedding, facts), shuffle or ShuffleConfig())
    check(learnable, [Example(torch.empty(0), picture.caption) for picture in pictures], settings, processes)

    examples = encoded_examples(host, pictures)
    largest = max((example.latent for example in examples), key=torch.numel)
    ended = None
    with host.trainable(largest, settings.batch_size) as model:
        training = Training(model, examples, learnable, settings, processes)
        folder = None
        if processes.rank == 0:
            folder = RunFolder.new(root, embedding.name)
            folder.write_settings(_record(host, learnable, settings, len(examples)))
        yield Started(folder, len(examples), learnable.embedding)
        with closing(run(training, folder)) as events:
            for event in events:
                if isinstance(event, Ended):
                    ended = event
                else:
                    yield event
    assert ended is not None
    del model, training  # what they hold of the device's memory is for the preview now
    if preview is not None and folder is not None:
        prompt = learnable.prompt(preview.line or settings.template[0], examples[0])
        made = _previewed(host, prompt, examples[0].latent.shape, ended.learnt, settings.seed, preview.steps, folder)
        if made is not None:
            yield Previewed(made)
    yield ended


def _record(host: Host, learnable: LearnableEmbedding, settings: TrainSettings, pictures: int) -> dict[str, object]:
    """What decides the result, for the run's folder."""
    return {
        **asdict(settings),
        "shuffle": asdict(learnable.shuffle),
        "embedding": learnable.name,
        "pictures": pictures,
        "vectors": {key: list(rows.shape) for key, rows in learnable.embedding.vectors.items()},
        "model": host.identity(),
    }


def _previewed(
    host: Host, prompt: str, shape: Sequence[int], embedding: Embedding, seed: int, steps: int, folder: RunFolder
) -> Tensor | None:
    """What the host generates, kept in the folder; None, and a line in the log, where that goes wrong."""
    try:
        pictures = host.sample([prompt], [seed], shape, Sampling(steps), [embedding])
    except host.interrupts:
        log.warning("textinv: the preview was cancelled; what was learnt is kept.")
        return None
    except Exception:  # whatever it is, hours of training do not depend on it
        log.exception("textinv: the preview failed; what was learnt is kept.")
        return None
    try:
        folder.save_preview(pictures[0], embedding)
    except OSError as error:
        log.warning(f"textinv: the preview could not be kept in the run's folder: {error}")
    return pictures
