"""What a run says of its result."""

import json
from collections.abc import Callable

import pytest
import torch

from tests.rig import PACK
from textinv_core.embedding import Embedding
from textinv_core.training.verdict import Verdict, verdict

WORDS = {"clip_l": 0.4, "clip_g": 2.0}
START = {"clip_l": torch.eye(4, 8) * 0.4, "clip_g": torch.eye(4, 12) * 2.0}


def after(change: Callable[[torch.Tensor], torch.Tensor], *keys: str) -> Embedding:
    """What becomes of START when the vectors of some encoders change."""
    return Embedding("cat", {key: change(rows) if key in keys else rows for key, rows in START.items()}, 7)


def said(learnt: Embedding, *more) -> Verdict:
    return verdict(Embedding("cat", START, 0), learnt, WORDS, *more)


def test_what_was_learnt_is_said_in_the_words_own_norm():
    learnt = said(after(lambda rows: 3 * rows, *WORDS), (0.2, 0.15), 0.0)
    assert learnt.is_good
    assert "fell from 0.2000 to 0.1500, by 25.0%" in learnt.text
    assert "moved by 2 times the norm of a usual word, and the longest now has 3 times" in learnt.text
    assert "gives exactly the conditioning" in learnt.text
    facts = json.loads(json.dumps(learnt.facts(), allow_nan=False))
    assert facts["fixed_loss"] == [0.2, 0.15] and facts["is_read"] is True
    assert Verdict.read(facts) == learnt
    assert facts["vectors"]["clip_g"] == pytest.approx({"distance": 4, "norm": 6, "still": 0, "word_norm": 2})


@pytest.mark.parametrize(
    ("learnt", "more", "words"),
    [
        (after(lambda rows: rows), [(0.2, 0.2), 0.0], "Nothing was learnt: the vectors have not moved."),
        (after(lambda rows: 1.001 * rows, *WORDS), [], "have hardly moved, by 0.001 of a word's norm"),
        (after(lambda rows: -rows, *WORDS), [(0.2, 0.21), 0.0], "did not fall: it was 0.2000 before and is 0.2100"),
        (after(lambda rows: -rows, *WORDS), [(0.2, 0.19999), 0.0], "The fixed loss did not fall"),
        (after(lambda rows: -rows, *WORDS), [(0.2, float("nan")), 0.0], "The fixed loss did not fall"),
        (after(lambda rows: 1e36 * rows, "clip_l"), [(0.2, 0.1), 0.0], "has 1e+36 times the norm of a usual word"),
        (after(lambda rows: 40 * rows, "clip_l"), [(0.2, 0.1), 0.0], "has 40 times the norm of a usual word"),
        (after(lambda rows: 40 * rows, "clip_g"), [(0.2, 0.1), 0.0], "has 40 times the norm of a usual word"),
        (after(lambda rows: -rows, *WORDS), [(0.2, 0.1), 0.1], "does not give the conditioning"),
        (after(lambda rows: -rows, *WORDS), [(0.2, 0.1), float("inf")], "does not give the conditioning"),
    ],
)
def test_what_went_wrong_is_said_first(learnt, more, words):
    bad = said(learnt, *more)
    assert not bad.is_good and words in bad.text
    assert bad.text.index(words) < (bad.text.find("gives exactly") % len(bad.text))


def test_vectors_that_no_prompt_used_are_counted():
    some = said(after(lambda rows: torch.cat([-rows[:3], rows[3:]]), *WORDS), (0.2, 0.1))
    assert some.is_good and "2 of 8 vectors have not moved" in some.text


def test_rounding_is_no_difference():
    half = said(after(lambda rows: -rows, *WORDS), (0.2, 0.1), 1e-4)
    assert half.is_good and "The saved file gives the conditioning" in half.text


def test_what_was_not_tried_is_not_said():
    short = said(after(lambda rows: -rows, *WORDS))
    assert short.is_good and "fell" not in short.text and "file" not in short.text
    assert "Whether that is a gain is not known: there is no fixed loss from before the first step" in short.text
    assert short.facts()["fixed_loss"] is None and short.facts()["is_read"] is None


@pytest.mark.parametrize("facts", [None, [], {}, {"vectors": {"clip_l": 3}}, {"vectors": {}, "text": "short"}])
def test_what_is_no_verdict_is_none(facts):
    assert Verdict.read(facts) is None


@pytest.mark.parametrize(
    ("rate", "is_good", "words"),
    [
        ("0.005", True, "The fixed loss fell from"),
        ("1e-9", False, "Nothing was learnt: the vectors have hardly moved, by"),
        ("10", False, "times the norm of a usual word, which swallows the rest of a prompt"),
    ],
)
def test_runs_on_the_toy_world_are_told_apart(tmp_path, rate, is_good, words):
    """The real thing, as the words are to be true of it: some seconds each."""
    pytest.importorskip("diffusers")
    from textinv_core.hosts.diffusers import load
    from textinv_core.images import load_folder
    from textinv_core.training.learn import learn
    from textinv_core.training.settings import TrainSettings

    world = PACK / "textinv_core" / "toyworld"
    host = load(world / "toyworld.safetensors", world)
    told = TrainSettings(("a photo of [name]",), 12, rate, batch_size=4, gradient_accumulation=1, evaluate_every=12)
    pictures = list(load_folder(world, "pictures"))
    *_, ended = learn(host, pictures, host.create_embedding("cat", "figure", 2), told, tmp_path)
    assert (ended.verdict.is_good, ended.verdict.is_read) == (is_good, True)
    assert words in ended.verdict.text
    assert ("The fixed loss did not fall" in ended.verdict.text) == (rate == "1e-9")  # at 10 it falls all the same
