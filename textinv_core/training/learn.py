"""A training from pictures to what was learnt: the one sequence behind the node, the command and what comes next."""

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..embedding import Embedding, with_model
from ..hosts.base import Host, TrainableModel
from ..picture import Picture
from ..shuffle import ShuffleConfig
from .evaluation import Evaluated, split
from .examples import Example, cropped, encoding
from .folder import RunFolder
from .identity import facts, identity
from .learnable import LearnableEmbedding
from .parallel import ALONE, Processes
from .preview import Preview, check_preview, is_alike
from .previews import Previewed, Previews
from .resume import found
from .run import Ended, Paused, Saved, run
from .settings import UNDECIDING, TrainSettings
from .training import Step, Training, check
from .verdict import judged

log = logging.getLogger("textinv")


@dataclass(frozen=True)
class Encoded:
    """So many of the pictures are latents."""

    done: int
    pictures: int

    def __str__(self) -> str:
        return f"{self.done} of {self.pictures} pictures encoded"


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


Event = Encoded | Started | Step | Evaluated | Saved | Previewed | Ended


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
    texts: Mapping[str, str] | None = None,
) -> Generator[Event, None, None]:
    """Train `embedding` on `pictures`, in a run's folder below `root`, and tell what happens as it happens.

    The same inputs are the same run: what has ended gives its result at once, what has not goes on where it stood, see
    `settings.resume`. It begins with Started, behind an Encoded for each picture where there is something to train, and
    ends with Ended, whose `learnt` is an Embedding. To finish early, call `Started.finish`; to stop, stop consuming:
    what was learnt is in the folder then (see `run`). Consume it in one thread, and close it (`contextlib.closing`)
    where that may end before it does: until then the model is set to be trained on.

    preview: what to generate on the way and at the end, while the host has its model back; nothing that is learnt
    depends on it. texts: go into its files, by name; see `Previews`.

    Whatever keeps the training from starting is raised before any work is done. Raises UserError for what the person
    can mend, and what `Training.advance` and the host raise. A preview that fails, and one at the end that is
    interrupted, is left out.
    """
    host.check_fits(embedding)
    preview = preview if preview is not None and preview.steps else None
    if preview is not None:
        check_preview(preview, host.samplers, host.schedulers, host.latent_multiple)
    shuffle = shuffle or ShuffleConfig()
    as_trained = [cropped(picture, host.latent_multiple) for picture in pictures]
    height, width = as_trained[0].pixels.shape[:2] if pictures else (0, 0)
    about_model = {**host.facts(), "modelspec.resolution": f"{width}x{height}"}
    learnable = LearnableEmbedding(with_model(embedding, about_model), shuffle, host.names)
    examples = [Example(torch.empty(0), picture.caption) for picture in pictures]
    last_step = check(learnable, examples, settings, processes).last_step

    def previews_of(first: Example, preview: Preview, folder: RunFolder) -> Previews:
        prompt = learnable.prompt(preview.prompt or settings.template[0], first)
        preview = replace(preview, negative=learnable.prompt(preview.negative, first))
        return Previews(preview, host, prompt, first.latent.shape, folder, texts)

    with ExitStack() as stack:
        folder, past, shows_it = None, None, False
        if processes.rank == 0:
            about = facts(host, as_trained, embedding, settings, shuffle)
            folder, past = found(root, embedding, about, settings, last_step, stack)
            held_out = [pictures[i].name for i in split(len(pictures), settings)[1]]
            shows_it = preview is not None and is_alike(preview, folder.settings().get("preview"))
            if not isinstance(past, Ended):
                told = _told(folder, past, about, learnable, settings, host.told(), preview, len(pictures), held_out)
                folder.write_settings(told)
            if held_out and not isinstance(past, Ended):
                log.info(f"textinv: {embedding.name} does not learn from {', '.join(sorted(held_out))}.")
            has_filewords = any("[filewords]" in line for line in settings.template)
            if has_filewords and not any(picture.caption for picture in pictures) and not isinstance(past, Ended):
                log.warning(
                    f"textinv: none of the {len(pictures)} pictures of {embedding.name} has a caption, so [filewords] "
                    "in the template stands for nothing."
                )
        past = processes.share(past)
        learnt_from = len(pictures) - settings.held_out
        if isinstance(past, Ended):
            yield Started(folder, learnt_from, learnable.embedding, past.learnt.step, _nothing)
            if preview and folder and not (shows_it and past.learnt.step in folder.previews()):
                [first] = encoding(host, pictures[:1])
                for previewed in previews_of(first, preview, folder).at_the_end(past.learnt):
                    _note_other_preview(folder, preview, previewed)
                    yield previewed
            yield past
            return
        examples = []
        for example in encoding(host, pictures):
            examples.append(example)
            yield Encoded(len(examples), len(pictures))
        previews = preview and folder and previews_of(examples[0], preview, folder)
        largest = max((example.latent for example in examples), key=torch.numel)
        ended = None
        with ExitStack() as loaded:

            def load() -> TrainableModel:
                return loaded.enter_context(host.trainable(largest, settings.batch_size))

            def on_the_way(previews: Previews, training: Training, learnt: Embedding) -> Iterator[Previewed]:
                """A preview, for whose time the host has its model back."""
                loaded.close()
                yield from previews.generate(learnt)
                training.model = load()

            training = Training(load(), examples, learnable, settings, processes, past)
            yield Started(folder, learnt_from, learnable.embedding, training.step, training.finish)
            learnt = None if training.is_over else training.learnt()
            if previews and learnt and previews.is_due(learnt.step) and folder and learnt.step not in folder.previews():
                yield from on_the_way(previews, training, learnt)  # in whose time the run was stopped
            steps = run(training, folder, previews.is_due) if previews else run(training, folder)
            with closing(steps) as events:
                for event in events:
                    if isinstance(event, Ended):
                        ended = event
                    elif not isinstance(event, Paused):
                        yield event
                    elif previews:
                        yield from on_the_way(previews, training, event.learnt)
        assert ended is not None
        evaluations = training.evaluations
        del training  # what it holds of the device's memory is for the preview now
        if folder is not None:
            ended = replace(ended, verdict=judged(host, learnable.embedding, ended.learnt, ended.path, evaluations))
        if previews and ended.learnt:
            yield from previews.at_the_end(ended.learnt)
        if folder is not None:
            _note_end(folder, ended)
        yield ended


def _nothing() -> None:
    """What finishes a run that has ended."""


def _told(
    folder: RunFolder,
    past: Mapping[str, Any] | None,
    about: Mapping[str, Any],
    learnable: LearnableEmbedding,
    settings: TrainSettings,
    told_host: Mapping[str, Any],
    preview: Preview | None,
    pictures: int,
    held_out: Sequence[str],
) -> dict[str, Any]:
    """What the run is told and what it is about, for its folder; with `before`, what it was told otherwise earlier, and
    until which step."""
    told = {
        **asdict(settings),
        **told_host,
        **about,
        "embedding": learnable.name,
        "pictures": pictures,
        "held_out_pictures": list(held_out),
        "vectors": {key: list(rows.shape) for key, rows in learnable.embedding.vectors.items()},
        "preview": preview and asdict(preview),
        "identity": identity(about),
    }
    earlier = folder.settings()
    if past is None or not earlier:
        return told
    may_change = {*UNDECIDING, "preview"}
    before = {key: earlier.get(key) for key in told if key in may_change and told[key] != earlier.get(key)}
    befores = [*earlier.get("before", []), *([{"until_step": past["step"], **before}] if before else [])]
    kept = {"before": befores} if befores else {}
    return {**told, **kept, **{key: earlier[key] for key in ("written",) if key in earlier}}


def _note_other_preview(folder: RunFolder, preview: Preview, previewed: Previewed) -> None:
    """What a run that has ended shows now, once it does: else the picture from before would pass for this one."""
    earlier = folder.settings()
    before = {"until_step": previewed.step, "preview": earlier.get("preview")}
    if previewed.path is not None:
        _noted(folder, preview=asdict(preview), before=[*earlier.get("before", []), before])


def _note_end(folder: RunFolder, ended: Ended) -> None:
    facts: dict[str, Any] = {"ended": {"step": ended.learnt.step if ended.learnt else None}}
    if ended.verdict is not None:
        facts["result"] = ended.verdict.facts()
    _noted(folder, **facts)


def _noted(folder: RunFolder, **facts: Any) -> None:
    try:
        folder.note(**facts)
    except OSError as error:
        log.warning(f"textinv: it cannot be noted in the run's folder what has become of it: {error}")
