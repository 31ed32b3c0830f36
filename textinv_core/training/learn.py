"""A training from pictures to what was learnt: the one sequence behind the node, the command and what comes next."""

import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embedding import Embedding, with_model
from ..errors import UserError
from ..hosts.base import Host, Sampling
from ..picture import Picture
from ..shuffle import ShuffleConfig
from .evaluation import Evaluated, split
from .examples import Example, cropped, encoded_examples
from .folder import RunFolder
from .identity import facts, identity
from .learnable import LearnableEmbedding
from .parallel import ALONE, Processes
from .resume import found
from .run import Ended, Saved, run
from .settings import UNDECIDING, TrainSettings
from .training import Step, Training, check
from .verdict import Verdict, verdict

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

    pictures: how many are learnt from. embedding: as it is before. step: that it goes on from. finish: has the run end
    after the step in progress with all that comes at an end; may be called from any thread.
    """

    folder: RunFolder | None
    pictures: int
    embedding: Embedding
    step: int
    finish: Callable[[], None]


@dataclass(frozen=True)
class Previewed:
    """Pictures made with what was learnt, float32 [n, H, W, 3] in 0..1."""

    pictures: Tensor


Event = Started | Step | Evaluated | Saved | Previewed | Ended


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
    """Train `embedding` on `pictures`, in a run's folder below `root`, and tell what happens as it happens.

    The same inputs are the same run: what has ended gives its result at once, what has not goes on where it stood, see
    `settings.resume`. It begins with Started and ends with Ended, whose `learnt` is an Embedding. To finish early, call
    `Started.finish`; to stop, stop consuming: what was learnt is in the folder then (see `run`). Consume it in one
    thread, and close it (`contextlib.closing`) where that may end before it does: until then the model is set to be
    trained on.

    Whatever keeps the training from starting is raised before any work is done. Raises UserError for what the person
    can mend, and what `Training.advance` and the host raise. A preview that fails, or is interrupted, is left out.
    """
    host.check_fits(embedding)
    shuffle = shuffle or ShuffleConfig()
    as_trained = [cropped(picture, host.latent_multiple) for picture in pictures]
    height, width = as_trained[0].pixels.shape[:2] if pictures else (0, 0)
    about_model = {**host.facts(), "modelspec.resolution": f"{width}x{height}"}
    learnable = LearnableEmbedding(with_model(embedding, about_model), shuffle)
    examples = [Example(torch.empty(0), picture.caption) for picture in pictures]
    last_step = check(learnable, examples, settings, processes).last_step

    with ExitStack() as stack:
        folder, past = None, None
        if processes.rank == 0:
            about = facts(host, as_trained, embedding, settings, shuffle)
            folder, past = found(root, embedding.name, about, settings, last_step, stack)
            held_out = [pictures[i].name for i in split(len(pictures), settings)[1]]
            folder.write_settings(_told(folder, past, about, learnable, settings, len(pictures), held_out))
            if held_out:
                log.info(f"textinv: {embedding.name} does not learn from {', '.join(sorted(held_out))}.")
        past = processes.share(past)
        if isinstance(past, Ended):
            yield Started(folder, len(pictures) - settings.held_out, learnable.embedding, past.learnt.step, _nothing)
            yield past
            return
        examples = encoded_examples(host, pictures)
        largest = max((example.latent for example in examples), key=torch.numel)
        ended = None
        with host.trainable(largest, settings.batch_size) as model:
            training = Training(model, examples, learnable, settings, processes, past)
            yield Started(
                folder, len(examples) - settings.held_out, learnable.embedding, training.step, training.finish
            )
            with closing(run(training, folder)) as events:
                for event in events:
                    if isinstance(event, Ended):
                        ended = event
                    else:
                        yield event
        assert ended is not None
        evaluations = training.evaluations
        del model, training  # what they hold of the device's memory is for the preview now
        if folder is not None:
            ended = replace(ended, verdict=_judged(host, learnable.embedding, ended, evaluations))
        if preview is not None and folder is not None:
            prompt = learnable.prompt(preview.line or settings.template[0], examples[0])
            shape = examples[0].latent.shape
            made = _previewed(host, prompt, shape, ended.learnt, settings.seed, preview.steps, folder)
            if made is not None:
                yield Previewed(made)
        if folder is not None:
            _note_end(folder, ended)
        yield ended


def _nothing() -> None:
    """What finishes a run that has ended."""


def _told(
    folder: RunFolder,
    past: Mapping[str, Any] | Ended | None,
    about: Mapping[str, Any],
    learnable: LearnableEmbedding,
    settings: TrainSettings,
    pictures: int,
    held_out: Sequence[str],
) -> dict[str, Any]:
    """What the run is told and what it is about, for its folder; with `before`, what it was told otherwise earlier, and
    until which step."""
    told = {
        **asdict(settings),
        **about,
        "embedding": learnable.name,
        "pictures": pictures,
        "held_out_pictures": list(held_out),
        "vectors": {key: list(rows.shape) for key, rows in learnable.embedding.vectors.items()},
        "identity": identity(about),
    }
    earlier = folder.settings()
    if past is None or not earlier:
        return told
    if isinstance(past, Ended):
        return earlier
    before = {key: earlier.get(key) for key in told if key in UNDECIDING and told[key] != earlier.get(key)}
    befores = [*earlier.get("before", []), *([{"until_step": past["step"], **before}] if before else [])]
    return {**told, **({"before": befores} if befores else {})}


def _judged(host: Host, before: Embedding, ended: Ended, evaluations: Sequence[tuple[int, float]]) -> Verdict | None:
    """What to think of the result, said in the log; None where there is none, and, with a line there, where looking at
    it goes wrong. evaluations: (step, fixed loss) of each time it was taken."""
    learnt = ended.learnt
    if learnt is None:
        return None
    taken, start = dict(evaluations), before.step or 0
    fixed_loss = (taken[start], taken[learnt.step]) if start in taken and learnt.step in taken else None
    try:
        judged = verdict(before, learnt, host.word_norms(), fixed_loss, _read_back(host, learnt, ended.path))
    except host.interrupts:
        log.warning("textinv: looking at the result was cancelled; what was learnt is kept.")
        return None
    except Exception:  # whatever the text encoders raise, hours of training do not depend on it
        log.exception("textinv: looking at the result failed; what was learnt is kept.")
        return None
    log.log(
        logging.INFO if judged.is_good else logging.WARNING,
        f"textinv: {before.name}, step {learnt.step}: {judged.text}",
    )
    return judged


def _read_back(host: Host, learnt: Embedding, path: Path | None) -> float | None:
    """See `Host.read_back`; infinite for what is no embedding, None where there is no file, or it cannot be opened."""
    if path is None:
        return None
    try:
        return host.read_back(learnt, path)
    except UserError as error:
        log.warning(f"textinv: the saved file cannot be read back: {error}")
        return math.inf
    except OSError as error:
        log.warning(f"textinv: whether the saved file can be read back could not be tried: {error}")
        return None


def _note_end(folder: RunFolder, ended: Ended) -> None:
    facts: dict[str, Any] = {"ended": {"step": ended.learnt.step if ended.learnt else None}}
    if ended.verdict is not None:
        facts["result"] = ended.verdict.facts()
    try:
        folder.note(**facts)
    except OSError as error:
        log.warning(f"textinv: it cannot be noted in the run's folder that it has ended: {error}")


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
