import logging
import math

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeHost, FakeModel, fake_embedding, fake_examples, fixed, train
from textinv_core.embedding import Embedding
from textinv_core.errors import TrainingError
from textinv_core.picture import Picture
from textinv_core.schedule import LearningRateSchedule
from textinv_core.training.learn import learn
from textinv_core.training.optimizers import Turning, optimizer, warn_of_rates
from textinv_core.training.settings import OPTIMIZERS, TrainSettings


def angle(a, b):
    a, b = a.double(), b.double()
    return float(2 * torch.atan2((a / a.norm() - b / b.norm()).norm(), (a / a.norm() + b / b.norm()).norm()))


def turned(vector, gradient, by):
    """`vector` after one step."""
    vector = vector.clone()
    vector.grad = gradient
    Turning([vector], by).step()
    return vector


@hypothesis.settings(deadline=None)  # torch imports much the first time
@given(st.integers(0, 2**32), st.floats(1e-3, math.pi / 2), st.floats(1e-3, 1e3), st.floats(1e-20, 1e6))
def test_turns_by_the_learning_rate_down_the_gradient_and_keeps_its_length(seed, by, length, scale):
    start, gradient = length * fixed(seed, 8).float(), (scale * fixed(seed + 1, 8)).float()
    end = turned(start, gradient, by)
    assert angle(start, end) == pytest.approx(by, rel=1e-3)
    assert float(end.norm()) == pytest.approx(float(start.norm()), rel=1e-6)
    unit = start / start.norm()
    downhill = -(gradient - (gradient @ unit) * unit)
    assert angle(end - (end @ unit) * unit, downhill) < 1e-3


def test_how_large_the_gradient_is_does_not_matter():
    start, gradient = fixed(0, 8).float(), fixed(1, 8).float()
    assert torch.equal(turned(start, gradient, 0.1), turned(start, 2.0**-40 * gradient, 0.1))


@pytest.mark.parametrize("gradient", [None, torch.zeros(8), 3 * fixed(0, 8).float()])
def test_stays_where_there_is_nothing_to_turn_to(gradient):
    start = fixed(0, 8).float()
    assert torch.equal(turned(start, gradient, 0.3), start)


def test_finds_the_direction_that_is_asked_for():
    """Of the cosine with a target, which has no other minimum on the sphere."""
    target, vector = fixed(0, 16).float(), fixed(1, 16).float().requires_grad_()
    length = float(vector.detach().norm())
    turning = Turning([vector], 0.3)
    for step in range(100):
        turning.param_groups[0]["lr"] = 0.3 * (1 - step / 100)
        vector.grad = None
        (-torch.cosine_similarity(vector, target, dim=0)).backward()
        turning.step()
    assert angle(vector.detach(), target) < 0.01
    assert float(vector.detach().norm()) == pytest.approx(length, rel=1e-5)


def test_each_vector_of_each_encoder_turns_by_itself():
    start = fake_embedding(3)
    settings = TrainSettings(("a [name]",), 1, learning_rate="0.2", gradient_accumulation=1, optimizer="sphere")
    [step] = train(FakeModel(), fake_examples(2), start, settings)
    for key, rows in start.vectors.items():
        for before, after in zip(rows, step.learnt.vectors[key], strict=True):
            assert angle(before, after) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss(name):
    target, vector = fixed(0, 8).float(), fixed(1, 8).float().requires_grad_()
    chosen, losses = optimizer(name, [vector], 0.05), []
    for _ in range(20):
        loss = 1 - torch.cosine_similarity(vector, target, dim=0)
        vector.grad = None
        loss.backward()
        chosen.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def settings(rate, steps=100):
    return TrainSettings(("a [name]",), steps, learning_rate=rate, optimizer="sphere")


def test_a_vector_of_zeros_cannot_be_turned():
    embedding = Embedding("cat", {"clip_l": torch.zeros(2, 4), "clip_g": torch.ones(2, 6)}, 0)
    with pytest.raises(TrainingError, match="Give the embedding an init text"):
        next(train(FakeModel(), fake_examples(2), embedding, settings("0.1")))


def test_an_angle_beyond_a_quarter_turn_is_no_angle():
    with pytest.raises(TrainingError, match=r"radians, and 2 is more than a quarter turn, 1\.57"):
        next(train(FakeModel(), fake_examples(2), fake_embedding(), settings("0.1:50, 2")))


@pytest.mark.parametrize(
    ("rate", "steps", "said"),
    [
        ("0.002", 100, "by 0.2 radians in all 100 steps"),
        ("0.002", 100, "Try a rate of 0.05, or more steps."),
        ("0.1:10, 0.001", 100, "by 1.1 radians"),
        ("0.3", 4, "a quarter turn, 1.57. Try more steps."),
        ("0.05", 100, None),
    ],
)
def test_says_when_vectors_will_not_get_far(rate, steps, said, caplog):
    with caplog.at_level(logging.WARNING, "textinv"):
        warn_of_rates("sphere", LearningRateSchedule(rate, steps), is_new=True)
    assert said in caplog.text if said else not caplog.text


@pytest.mark.parametrize(("rate", "is_told"), [("0.4:8, 0.002", True), ("0.02:8, 0.002", False)])
def test_says_that_a_rate_may_be_an_angle(rate, is_told, caplog):
    with caplog.at_level(logging.WARNING, "textinv"):
        warn_of_rates("adamw", LearningRateSchedule(rate, 10), is_new=True)
    assert ("or is it an angle, for optimizer sphere?" in caplog.text) == is_told


@pytest.mark.parametrize(("step", "times"), [(0, 1), (90, 0)])
def test_says_so_once_and_not_of_what_has_been_trained_before(step, times, caplog, tmp_path):
    told = settings("0.001", 91 if step else 1)
    host, pictures = FakeHost(FakeModel()), [Picture(torch.ones(16, 16, 3), torch.ones(16, 16), "", "1")]
    with caplog.at_level(logging.WARNING, "textinv"):
        list(learn(host, pictures, fake_embedding(step=step), told, tmp_path))
    assert sum("usually further away" in message for message in caplog.messages) == times
