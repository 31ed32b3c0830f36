"""One training in the toy world, and what a judge of pixels says of it: what the scripts beside this share."""

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.levers import LEVERS
from benchmarks.toyworld import shipped, world
from textinv_core.embedding import Embedding
from textinv_core.files import write_atomically
from textinv_core.hosts.diffusers import PipelineHost
from textinv_core.prompts import TEMPLATES
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.examples import Example
from textinv_core.training.jobs import Job, run_jobs
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Training

NAME = "somebody"
PICTURES = 8  # to learn from
REACHED = (0.75, 0.9, 0.95)  # shares of the parts that are right
STEPS = 10  # of the sampler, for the pictures to judge by


@dataclass(frozen=True)
class Lesson:
    """What is taught and how; all of it decides the result, with `looks`, the steps after which it is looked at.

    kind: `subject`, one character in different places; or `style`, different characters, always in the same clothes
        before the same background.
    """

    character: int  # which of the held-out ones; for a style, the one whose clothes they are
    kind: str = "subject"
    vectors: int = 4
    seed: int = 0
    init_text: str = "figure"
    filewords: bool = False  # whether captions tell what the pictures do not have in common
    settings: Mapping[str, Any] = field(default_factory=dict)
    shuffle: Mapping[str, Any] = field(default_factory=dict)
    looks: tuple[int, ...] = (200,)
    sparing: bool = False  # ask for changes at every other look alone, the last, and the first with each of REACHED
    evaluate_every: int = 0  # also take the fixed loss, before the first step and every so many; 0 for never
    pictures: int = 8  # to judge by at each look, and as many with changes
    model: str = ""  # a folder with a toy world, for another than the shipped one
    lever: str = ""  # one of `levers.LEVERS`, which are not in the core
    halves: bool = False  # also judge the first and the last half of the vectors, by half as many pictures

    @property
    def own(self) -> dict[str, int | None]:
        """Part -> the colour to be learnt, which all pictures show."""
        character = characters()[self.character]
        if self.kind == "subject":
            return {part: getattr(character, part) for part in world.OWN_PARTS}
        return {"background": self.free[0], "shirt": character.shirt, "trousers": character.trousers}

    @property
    def free(self) -> list[int]:
        """Colours that are none of the character's."""
        return world.free_colours(vars(characters()[self.character]).values())

    @property
    def edits(self) -> list[tuple[str, str, int]]:
        """(words to add, attribute, what it must be then): nothing of this is in the pictures to learn from, but for
        the hair and hats of a style."""
        first, second, *_ = self.free
        asked = [("background", first), ("shirt", first), ("shirt", second), ("hat", second)]
        if self.kind == "style":
            asked = [("hair", second), ("hat", second), ("shirt", second), ("trousers", second)]
        return [(f"{world.COLOUR_NAMES[colour]} {part}", part, colour) for part, colour in asked]

    def scenes(self) -> list[world.Scene]:
        """The pictures to learn from."""
        if self.kind == "subject":
            return world.portraits(characters()[self.character], PICTURES, self.seed)
        rng = np.random.default_rng([self.seed, self.character])
        anybody = rng.choice([*world.named_characters().values()], PICTURES, replace=False)
        return [replace(world.pictured(one, rng), **self.own) for one in anybody]

    def caption(self, scene: world.Scene) -> str:
        """What is not to be learnt."""
        parts = ["background"] if self.kind == "subject" else ["hair", "eyes"]
        colours = [f"{world.COLOUR_NAMES[getattr(scene, part)]} {part}" for part in parts]
        return ", ".join([*colours, world.PLACES[scene.position]])


def model(folder: str = "") -> PipelineHost:
    return _loaded(Path(folder or shipped.FOLDER))


_loaded = cache(shipped.load)


@cache
def characters() -> list[world.Character]:
    return world.held_out_characters(100)


def examples(lesson: Lesson) -> list[Example]:
    scenes = lesson.scenes()
    latents = model(lesson.model).encode([*world.draw(scenes)])
    return [Example(latent, lesson.caption(scene)) for latent, scene in zip(latents, scenes, strict=True)]


def described(character: int, pictures: int) -> dict[str, Any]:
    """What `judge` finds in pictures of a character that the prompt describes in words, without an embedding."""
    own = Lesson(character).own
    words = [
        f"{world.COLOUR_NAMES[colour]} {part}" if colour is not None else f"no {part}" for part, colour in own.items()
    ]
    prompt = f"a photo of a figure with {', '.join(words)}"
    seen = world.measure(shipped.generate(model(), prompt, range(pictures), steps=STEPS))
    return {
        "own": [*own.values()],
        "shown": [[getattr(scene, part) for part in own] for scene, _ in seen],
        "far": [[far[part] for part in own] for _, far in seen],
    }


def drawn(lesson: Lesson, embedding: Embedding, words: str, seeds: Sequence[int]) -> Tensor:
    """Pictures whose prompt names the embedding."""
    prompt = {"subject": f"a photo of embedding:{NAME}", "style": f"a figure, embedding:{NAME} style"}[lesson.kind]
    return shipped.generate(model(lesson.model), prompt + words, seeds, [embedding], STEPS)


def judge(embedding: Embedding, lesson: Lesson, pictures: int, first_seed: int = 0) -> dict[str, Any]:
    """What pictures with the embedding show, without and with changes asked for; `pictures` of each."""
    shown = plain(embedding, lesson, pictures, first_seed)
    return shown | changed(embedding, lesson, pictures, first_seed)


def plain(embedding: Embedding, lesson: Lesson, pictures: int, first_seed: int = 0) -> dict[str, Any]:
    """What pictures with the embedding show.

    own, shown: the colours to be learnt, and those judged in each picture. far: how far these are from the colour
    named, see `world.measure`.
    """
    own = lesson.own
    seen = world.measure(drawn(lesson, embedding, "", range(first_seed, first_seed + pictures)))
    return {
        "own": [*own.values()],
        "shown": [[getattr(scene, part) for part in own] for scene, _ in seen],
        "far": [[far[part] for part in own] for _, far in seen],
    }


def changed(embedding: Embedding, lesson: Lesson, pictures: int, first_seed: int = 0) -> dict[str, Any]:
    """What pictures show where changes are asked for.

    edited: for each picture whether the change is there; kept: the share of its other parts that are right.
    """
    own, edited, kept = lesson.own, [], []
    share, first = pictures // len(lesson.edits), first_seed + 1000
    for i, (words, attribute, value) in enumerate(lesson.edits):
        for scene in world.judge(
            drawn(lesson, embedding, f", {words}", range(first + i * share, first + (i + 1) * share))
        ):
            edited.append(getattr(scene, attribute) == value)
            kept.append(float(np.mean([getattr(scene, p) == own[p] for p in own if p != attribute])))
    return {"edited": edited, "kept": kept}


def halves(embedding: Embedding) -> list[Embedding]:
    """The first half of the vectors, and the last, each as an embedding."""
    [(key, rows)] = embedding.vectors.items()
    return [replace(embedding, vectors={key: half}) for half in rows.tensor_split(2)]


def _settings(lesson: Lesson) -> TrainSettings:
    template = TEMPLATES[lesson.kind + ("_filewords" if lesson.filewords else "")]
    settings = {"gradient_accumulation": 1, **lesson.settings}
    return TrainSettings(template, steps=max(lesson.looks), seed=lesson.seed, **settings)


def teach(lesson: Lesson) -> list[dict[str, Any]]:
    """Train as the lesson says. A look: step, seconds of training until then, mean loss and the fixed losses since the
    one before, and `judge`'s.

    evaluated: [step, fixed loss, mean loss since the one before or None for the start], and evaluating: the seconds
    they took, which are not among the others.
    """
    settings = _settings(lesson)
    learnt_from = examples(lesson)
    host = model(lesson.model)
    start = host.create_embedding(NAME, lesson.init_text, lesson.vectors)
    learnable = LearnableEmbedding(start, ShuffleConfig(**lesson.shuffle))
    every = lesson.evaluate_every
    looks, losses, evaluated, seconds, evaluating, left = [], [], [], 0.0, 0.0, REACHED
    with host.trainable(learnt_from[0].latent, settings.batch_size) as trainable:
        training = Training(trainable, learnt_from, learnable, settings)
        if every:
            evaluated.append([0, training.evaluate().loss, None])
        while not training.is_over:
            since = time.perf_counter()
            step = training.advance()
            seconds += time.perf_counter() - since
            losses.append(step.loss)
            if every and step.step % every == 0:
                since = time.perf_counter()
                evaluated.append([step.step, training.evaluate().loss, float(np.mean(losses[-every:]))])
                evaluating += time.perf_counter() - since
            if step.step in lesson.looks:
                with torch.no_grad():
                    judged = plain(step.learnt, lesson, lesson.pictures)
                    gone_past = [share for share in left if accuracy(judged) >= share]
                    left = left[len(gone_past) :]
                    is_last, is_other = step.step == lesson.looks[-1], lesson.looks.index(step.step) % 2
                    if not lesson.sparing or gone_past or is_last or is_other:
                        judged |= changed(step.learnt, lesson, lesson.pictures)
                    if lesson.halves:
                        judged["halves"] = [judge(h, lesson, lesson.pictures // 2, 2000) for h in halves(step.learnt)]
                since_last = losses[looks[-1]["step"] if looks else 0 :]
                look = {"step": step.step, "seconds": seconds, "loss": float(np.mean(since_last)), **judged}
                looks.append(look | ({"evaluated": evaluated, "evaluating": evaluating} if every else {}))
                evaluated, evaluating = [], 0.0
    return looks


@cache
def _weights(folder: str) -> str:
    return hashlib.sha256((Path(folder or shipped.FOLDER) / "toyworld.safetensors").read_bytes()).hexdigest()[:16]


def _job(lesson: Lesson) -> Job:
    """A lesson with everything else that decides its result, called after all of it."""
    sampling = {"width": world.SIZE, "height": world.SIZE, "guidance": shipped.GUIDANCE, "steps": STEPS}
    facts = {"world": _weights(lesson.model), "sampling": sampling, "portraits": PICTURES}
    # What a lesson says of these is in them, with the defaults it leaves.
    elsewhere = "settings", "shuffle", "model", *(() if lesson.lever else ("lever",))
    facts["lesson"] = {key: value for key, value in asdict(lesson).items() if key not in elsewhere}
    facts["settings"] = asdict(_settings(lesson))
    facts["shuffle"] = asdict(ShuffleConfig(**lesson.shuffle))
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return Job(f"lesson-{name}", facts)


def _work(lessons: Sequence[Lesson], folder: Path) -> None:
    torch.set_num_threads(1)
    by_name = {_job(lesson).name: lesson for lesson in lessons}

    def run(job: Job, place: Path) -> None:
        lesson = by_name[job.name]
        with LEVERS[lesson.lever](model(lesson.model)) if lesson.lever else nullcontext():
            write_atomically(place / "found.json", json.dumps(teach(lesson)).encode())

    outcomes = run_jobs([_job(lesson) for lesson in by_name.values()], folder, run)
    if failed := [outcome for outcome in outcomes if outcome.state == "failed"]:
        raise RuntimeError(f"{len(failed)} lessons failed, the first with: {failed[0].message}")


def teach_all(lessons: Sequence[Lesson], folder: Path, processes: int) -> list[list[dict[str, Any]]]:
    """The looks of each lesson; those that are in the folder already are not taught again."""
    with ProcessPoolExecutor(processes) as pool:
        for done in [pool.submit(_work, lessons, folder) for _ in range(processes)]:
            done.result()
    return [json.loads((folder / _job(lesson).name / "found.json").read_text()) for lesson in lessons]


def accuracy(look: Mapping[str, Any]) -> float:
    """The share of parts that have the colour to be learnt."""
    return float(np.mean([[a == b for a, b in zip(each, look["own"], strict=True)] for each in look["shown"]]))


def arguments(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="for what was found; a second run goes on there, so take another after changing code",
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each lesson; %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="each with one thread; %(default)s")
    return parser
