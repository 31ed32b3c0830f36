"""Embeddings turned to pictures, by a text encoder of one matrix."""

import logging

import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize

from textinv_core.embedding import Embedding
from textinv_core.errors import UserError
from textinv_core.prompts import TEMPLATES
from textinv_core.training.warm_start import BATCH, STEPS, warm_start


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


START = Embedding("cat", {"clip_l": normal(3, 6, seed=0), "clip_g": 0.4 * normal(3, 8, seed=1)}, 0, {"fact": "kept"})
PICTURES = normal(5, 12, seed=2) + 2 * normal(12, seed=3)  # more alike than not, as pictures of one thing are
MATRIX = normal(8, 12, seed=4)
MEASURED = -(-len(TEMPLATES["subject"]) // BATCH)  # batches of all lines before the steps, and after


class Encoder:
    """The mean of the vectors, and a little of the words; keeps what it is given."""

    def __init__(self):
        self.prompts, self.vectors = [], []

    def __call__(self, prompts, embedding):
        self.prompts.append(list(prompts))
        self.vectors.append(embedding.vectors["clip_g"].detach())
        words = torch.stack([normal(12, seed=sum(map(ord, prompt))) for prompt in prompts])
        return embedding.vectors["clip_g"].mean(0) @ MATRIX + 0.1 * words


def warm(start=START, pictures=PICTURES, encoder=None, stepped=lambda: None):
    return warm_start(start, "clip_g", pictures, encoder or Encoder(), stepped)


def cosine(embedding):
    return float(cosine_similarity((embedding.vectors["clip_g"].mean(0) @ MATRIX)[None], PICTURES).mean())


def test_prompts_come_near_the_pictures():
    mean = normalize(PICTURES, dim=1).mean(0)
    best = torch.linalg.lstsq(MATRIX.T, mean[:, None]).solution.T @ MATRIX  # its direction is nearest of all
    assert cosine(START) < 0
    assert cosine(warm()) > 0.98 * float(cosine_similarity(best, PICTURES).mean()) > 0.5


def test_all_but_the_directions_of_the_compared_vectors_stays():
    learnt = warm()
    lengths = [each.vectors["clip_g"].norm(dim=1) for each in (START, learnt)]
    assert torch.allclose(*lengths, rtol=1e-5)
    assert not torch.allclose(START.vectors["clip_g"], learnt.vectors["clip_g"], atol=0.1)
    assert learnt.vectors["clip_l"] is START.vectors["clip_l"]
    assert (learnt.name, learnt.step, learnt.metadata) == ("cat", 0, {"fact": "kept"})
    assert list(learnt.vectors) == ["clip_l", "clip_g"]
    assert not learnt.vectors["clip_g"].requires_grad


def test_the_same_start_and_pictures_give_the_same_vectors_whatever_the_random_state():
    torch.manual_seed(1)
    first = warm()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(warm().vectors["clip_g"], first.vectors["clip_g"])
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn from it


def test_the_start_is_not_changed():
    before = START.vectors["clip_g"].clone()
    warm()
    assert torch.equal(START.vectors["clip_g"], before)


def test_each_step_draws_lines_that_name_the_embedding():
    encoder, steps = Encoder(), []
    warm(encoder=encoder, stepped=lambda: steps.append(1))
    assert len(steps) == STEPS
    of_steps = encoder.prompts[MEASURED:-MEASURED]
    assert [len(each) for each in of_steps] == [BATCH] * STEPS
    lines = {line.replace("[name]", "embedding:cat") for line in TEMPLATES["subject"]}
    assert {prompt.replace(" ,", ",") for each in of_steps for prompt in each} == lines
    assert len({tuple(each) for each in of_steps}) == STEPS


def test_a_step_goes_by_its_own_gradient_and_less_far_than_the_last():
    encoder = Encoder()
    warm(pictures=PICTURES[:1], encoder=encoder)
    of_steps = encoder.vectors[MEASURED : MEASURED + STEPS + 1]
    for number, prompts in enumerate(encoder.prompts[MEASURED:-MEASURED]):
        here, there = (each[0].clone().requires_grad_() for each in of_steps[number : number + 2])
        now = Embedding("cat", {"clip_g": torch.stack([here, *of_steps[number][1:]])})
        cosine_similarity(Encoder()(prompts, now), PICTURES[:1]).mean().backward()
        turned = cosine_similarity(here.detach(), there.detach(), dim=0).clamp(-1, 1).acos()
        assert float(turned) == pytest.approx(0.1 * (1 - number / STEPS), abs=2e-3)
        if number < 0.9 * STEPS:  # the last ones are too short for single precision
            uphill = here.grad - here.grad @ here / (here @ here) * here
            assert cosine_similarity(uphill, there - here * turned.cos(), dim=0) > 0.999


def test_every_picture_counts():
    without_last = warm(pictures=PICTURES[:-1])
    assert not torch.allclose(without_last.vectors["clip_g"], warm().vectors["clip_g"], atol=1e-3)
    longer = PICTURES * torch.tensor([[1.0], [10.0], [1.0], [1.0], [0.1]])
    assert torch.allclose(warm(pictures=longer).vectors["clip_g"], warm().vectors["clip_g"], atol=1e-5)


def test_what_it_came_to_is_said(caplog):
    with caplog.at_level(logging.INFO, "textinv"):
        learnt = warm()
    [said] = caplog.messages
    assert said.startswith("textinv: cosine of cat with 5 pictures: ")
    assert said.endswith(f"(clip_g, {STEPS} steps, 0 s)")
    before, after = (float(word) for word in said.split(": ")[2].split(" (")[0].split(" -> "))
    assert (before, after) == pytest.approx((cosine(START), cosine(learnt)), abs=0.05)


def test_zeros_cannot_be_turned():
    zeros = Embedding("cat", {"clip_l": START.vectors["clip_l"], "clip_g": torch.zeros(2, 8)})
    with pytest.raises(UserError, match=r"'cat' starts from zeros, .* Give it an init text"):
        warm(zeros)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_what_cannot_be_compared_is_a_sentence(value):
    pictures = PICTURES.clone()
    pictures[2] = value
    with pytest.raises(UserError, match="The CLIP vision model makes nothing of these pictures"):
        warm(pictures=pictures)
    with pytest.raises(UserError, match=r"The text encoder clip_g makes nothing .* may lack the text projection"):
        warm(encoder=lambda prompts, embedding: torch.full((len(prompts), 12), value))
