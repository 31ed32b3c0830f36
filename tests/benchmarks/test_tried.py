"""What was tried changes what is learnt, in the way it says, and nothing after it."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations

import pytest

pytest.importorskip("diffusers")
import torch

from benchmarks import lessons, levers
from benchmarks.learning import lesson
from benchmarks.levers import LEVERS
from benchmarks.tried import CHANGED, changed
from textinv_core.training.chance import chance

LESSON = replace(lesson("preset fast", "subject", 20, 0), looks=(3,))


@pytest.fixture
def learnt(monkeypatch):
    """Vectors after three steps; pictures are not drawn."""
    monkeypatch.setattr(lessons, "changed", lambda *_: {})

    def rows(lever: str) -> torch.Tensor:
        kept = []

        def plain(embedding, *_):
            kept.append(embedding)
            return {"own": [], "shown": [[]]}

        monkeypatch.setattr(lessons, "plain", plain)
        with LEVERS[lever](lessons.model()) if lever else nullcontext():
            lessons.teach(LESSON)
        [rows] = kept[0].vectors.values()
        return rows

    return rows


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the share of no parts at all
def test_each_lever_changes_what_is_learnt_and_only_while_it_lasts(learnt):
    usual = learnt("")
    different = {lever: learnt(lever) for lever in LEVERS}
    assert torch.equal(learnt(""), usual)
    assert [(a, b) for a, b in combinations(different, 2) if torch.equal(different[a], different[b])] == []
    for rows in different.values():
        assert rows.isfinite().all()
        assert rows.norm(dim=1) == pytest.approx(usual.norm(dim=1), rel=1e-3)
        assert not torch.equal(rows, usual)


def drawn(lever: str, batches: int, pictures: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = levers.training.draw_noise
    with LEVERS[lever](lessons.model()):
        changed = levers.training.draw_noise
        made = [changed((pictures, 4, 2, 2), 1000, chance(0, "noise", i), 300, 800) for i in range(batches)]
    assert levers.training.draw_noise is draw
    assert all(((t >= 300) & (t < 800)).all() for _, t in made)
    return made


def test_opposite_noise_is_turned_round_for_the_same_picture(monkeypatch):
    seen = []
    monkeypatch.setattr(levers, "prediction_losses", lambda *given: seen.append(given))
    given = torch.arange(3.0).view(3, 1, 1, 1), torch.tensor([5.0, 6, 7]).view(3, 1, 1, 1), torch.tensor([1, 2, 3])
    levers.opposite("model", *given, ["a", "b", "c"], None, "none")
    [(model, latents, noise, t, conditions, *more)] = seen
    assert (latents.flatten().tolist(), noise.flatten().tolist(), t.tolist()) == ([0, 0, 2], [5, -5, 7], [1, 1, 3])
    assert (model, conditions, more) == ("model", ["a", "a", "c"], [None, "none"])


def test_even_timesteps_leave_no_gaps():
    timesteps = torch.cat([t for _, t in drawn("even timesteps", 20, 2)]).sort().values
    assert timesteps.diff().max() < 2.5 * 500 / 40


def test_falling_timesteps_come_down():
    means = torch.stack([t.float().mean() for _, t in drawn("falling timesteps", 32, 8)])
    assert means[:8].mean() > 650
    assert means[-8:].mean() < 500


def test_each_row_is_a_training_of_its_own():
    for kind, rows in CHANGED.items():
        made = [repr(changed(kind, name, 20, 0)) for name in rows]
        assert len({*made}) == len(made)
        usual = lesson("preset fast", kind, 20, 0)
        assert replace(changed(kind, "preset fast", 20, 0), looks=usual.looks) == usual


def test_shared_angles_are_as_gradients_are_long_and_the_rate_in_all():
    vectors = [torch.tensor([1.0, 0, 0]), torch.tensor([0, 2.0, 0])]
    start = [vector.clone() for vector in vectors]
    vectors[0].grad, vectors[1].grad = torch.tensor([5.0, 1, 0]), torch.tensor([0, 1.0, 3])
    levers.OneAngle(vectors, 0.1).step()
    angles = torch.stack([torch.cosine_similarity(a, b, dim=0).acos() for a, b in zip(vectors, start, strict=True)])
    assert float(angles[1] / angles[0]) == pytest.approx(3, rel=1e-2)
    assert float(angles.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-2)
