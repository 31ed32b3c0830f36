"""What is the same for all hosts, on one that does next to nothing."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from textinv_core.embedding import Embedding
from textinv_core.errors import UserError
from textinv_core.hosts import base
from textinv_core.hosts.base import Encoder, Host, Known, Occurrences, TrainableModel

# Word -> its weight, where that is not 1.
WEIGHTS = {"strong": 1.5}


@dataclass
class SmallEncoder(Encoder):
    """One token a word: its length, but "known" is an embedding of one vector."""

    table: nn.Embedding

    def tokens(self, text):
        row = torch.full((self.width,), 7.0, dtype=torch.float16)
        return [(row if word == "known" else len(word), WEIGHTS.get(word, 1.0)) for word in text.split()]

    def vectors(self, tokens):
        return self.table.weight.detach()[list(tokens)].float()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return torch.tanh(self.linear(x))


class SmallModel(TrainableModel):
    """Predicts with one block; a condition is how many tokens long it is, and equally long ones fit together."""

    def __init__(self, host: "SmallHost", stack: ExitStack):
        super().__init__(stack)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.modules, self.blocks = (host.network,), (host.network,)
        self.batches = []

    def conditions(self, prompts, lookups, latents):
        return [len(prompt.split()) for prompt in prompts]

    def _fit_together(self, conditions):
        return len(set(conditions)) == 1

    def _predict(self, noisy, t, conditions):
        self.batches.append(list(conditions))
        scale = torch.tensor(conditions)[:, None] + t[:, None]
        return self.modules[0](noisy) * scale

    def lean_modules(self):
        return [self.modules[0][0].linear]

    def recast(self, module, like):
        return module.weight.to(like)


class SmallHost(Host):
    called = "toy"
    encoder_name = "TwoTables"
    latent_multiple = 8
    encoders: Any = None

    def __init__(self, keys=("clip_l", "clip_g")):
        tables = {key: nn.Embedding(12, 4 + 2 * n) for n, key in enumerate(keys)}
        self.encoders = {key: SmallEncoder(table) for key, table in tables.items()}
        self.network = nn.Sequential(Block())
        with torch.no_grad():
            for n, weight in enumerate([*(table.weight for table in tables.values()), *self.network.parameters()]):
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(n)))
        self.undone: list[str] = []

    def encode(self, images):
        raise NotImplementedError

    def _encoded(self, embedding):
        return self.handed

    def _encoded_from(self, file, embedding):
        return self.reads

    def decode(self, latents):
        raise NotImplementedError

    samplers = schedulers = ()

    def sample(self, prompts, seeds, shape, sampling, embeddings=()):
        raise NotImplementedError

    def _load(self, latent, batch_size, stack):
        stack.callback(self.undone.append, "loading")
        return SmallModel(self, stack)

    def weights(self):
        return self.network.named_parameters()

    def identities(self):
        raise NotImplementedError


def embedding(name: str = "cat", **shapes: tuple[int, int]) -> Embedding:
    return Embedding(name, {key: torch.zeros(shape) for key, shape in shapes.items()})


# Embeddings


def test_a_usual_word_s_norm_is_the_median_of_tokens_from_all_over_the_vocabulary(monkeypatch):
    host = SmallHost()
    with torch.no_grad():
        host.encoders["clip_l"].table.weight[:] = torch.arange(12.0)[:, None] * torch.tensor([0.6, 0.8, 0, 0])
    norms = host.word_norms()
    assert norms["clip_l"] == pytest.approx(5)
    assert norms["clip_g"] == pytest.approx(float(host.encoders["clip_g"].table.weight.detach().norm(dim=1).median()))
    monkeypatch.setattr(base, "MEASURED_TOKENS", 5)
    assert host.word_norms()["clip_l"] == pytest.approx(3)  # of 0, 3, 6 and 9 the lower middle


@pytest.mark.parametrize(
    ("read", "off"),
    [
        ([torch.tensor([1.0, -4.0]), torch.tensor([2.0])], 0),
        ([torch.tensor([1.5, -4.0]), torch.tensor([2.0])], 0.125),
        ([torch.tensor([1.0, -4.0]), torch.tensor([1.0])], 0.5),
        ([torch.tensor([1.0, -4.0])], math.inf),
        ([torch.tensor([1.0, -4.0]), torch.tensor([2.0, 2.0])], math.inf),
        ([torch.tensor([1.0, math.nan]), torch.tensor([2.0])], math.inf),
    ],
)
def test_reading_back_tells_how_far_off_it_is(read, off):
    host = SmallHost()
    host.handed, host.reads = [torch.tensor([1.0, -4.0]), torch.tensor([2.0])], read
    assert host.read_back(embedding(clip_l=(1, 4)), Path("cat.safetensors")) == off


def test_widths_are_the_tables():
    assert SmallHost().widths == {"clip_l": 4, "clip_g": 6}


@pytest.mark.parametrize(
    "shapes",
    [{"clip_l": (2, 4)}, {"clip_l": (2, 4), "clip_g": (2, 5)}, {"clip_l": (2, 4), "clip_h": (2, 6)}],
)
def test_an_embedding_that_does_not_fit(shapes):
    with pytest.raises(
        UserError,
        match=r"'cat' does not fit this toy: it has clip_l 2 x 4.*\(TwoTables\) .* 4 for clip_l, 6 for clip_g",
    ):
        SmallHost().check_fits(embedding(**shapes))


def test_an_embedding_fits_with_vectors_for_more_encoders():
    SmallHost().check_fits(embedding(clip_l=(2, 4), clip_g=(1, 6), t5xxl=(1, 9)))


def test_vectors_of_a_text_are_the_tables_rows_and_an_embedding_s_own():
    host = SmallHost()
    for key, rows in host.text_vectors("three known at").items():
        table = host.encoders[key].table.weight
        assert rows.dtype == torch.float32 and not rows.requires_grad
        assert torch.equal(rows, torch.stack([table[5], torch.full_like(table[5], 7.0), table[2]]))
    assert {key: rows.shape for key, rows in host.text_vectors("").items()} == {"clip_l": (0, 4), "clip_g": (0, 6)}


def test_text_with_weights_makes_no_vectors():
    with pytest.raises(UserError, match=r"'a strong cat' gives some words a weight.*write \\\( and \\\)"):
        SmallHost().text_vectors("a strong cat")


@pytest.mark.parametrize(("keys", "words"), [(("clip_l", "clip_g"), [1, 2]), (("clip_h",), [1, 3])])
def test_a_new_embedding_takes_the_first_words_for_clip_l_and_every_nth_else(keys, words):
    host = SmallHost(keys)
    new = host.create_embedding("cat", "a bb ccc dddd", 2)
    assert (new.name, new.step) == ("cat", 0)
    for key, rows in new.vectors.items():
        assert torch.equal(rows, host.encoders[key].table.weight[words])


def test_embeddings_that_are_known():
    known = Known({"cat": embedding(clip_l=(2, 4))})
    assert known("clip_l", "cat").shape == (2, 4)
    assert known("clip_l", "dog") is None


def test_occurrences_are_counted_by_name_and_encoder():
    asked = []

    def lookup(name: str) -> Callable[[str, int], Tensor]:
        return lambda key, occurrence: asked.append((name, key, occurrence)) or torch.zeros(1, 4)

    find = Occurrences({"cat": lookup("cat"), "dog": lookup("dog")})
    met = [("clip_l", "cat"), ("clip_l", "dog"), ("clip_l", "cat"), ("clip_g", "cat"), ("clip_l", "cat")]
    assert all(find(*place) is not None for place in met)
    assert find("clip_l", "fox") is None
    assert asked == [
        ("cat", "clip_l", 0), ("dog", "clip_l", 0), ("cat", "clip_l", 1), ("cat", "clip_g", 0), ("cat", "clip_l", 2),
    ]  # fmt: skip


# Training


def test_conditions_that_fit_go_together_and_others_one_by_one():
    noisy, t = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([10, 20, 30])
    with SmallHost().trainable(torch.zeros(3), 3) as model, torch.no_grad():
        together = model.predict(noisy, t, [2, 2, 2])
        apart = model.predict(noisy, t, [2, 4, 2])
        assert model.batches == [[2, 2, 2], [2], [4], [2]]
    assert torch.allclose(apart[[0, 2]], together[[0, 2]])
    assert torch.allclose(apart[1], together[1] * 24 / 22)


@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt])
def test_everything_is_put_back(end):
    with torch.inference_mode():
        host = SmallHost()
    before = {name: id(weight) for name, weight in host.weights()}
    random_state = torch.get_rng_state()
    block = host.network[0]
    try:
        with torch.inference_mode(), host.trainable(torch.zeros(3), 1) as model:
            assert "forward" in vars(block.linear) and "forward" not in vars(block)
            model.checkpoint_activations()
            assert "forward" in vars(block)
            assert not any(weight.is_inference() or weight.requires_grad for _, weight in host.weights())
            noisy = torch.ones(1, 3, requires_grad=True)
            model.predict(noisy, torch.tensor([1]), [1]).sum().backward()
            assert noisy.grad is not None and noisy.grad.abs().sum() > 0
            torch.rand(3)
            assert host.undone == []
            if end is not None:
                raise end
    except (RuntimeError, KeyboardInterrupt) as error:
        assert type(error) is end
    assert {name: id(weight) for name, weight in host.weights()} == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert "forward" not in {*vars(block), *vars(block.linear)}
    assert host.undone == ["loading"]


class InPlace(nn.Module):
    """A block that changes what it has been given and what it keeps for gradients."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        y = torch.sigmoid(self.linear(x))
        x += y
        y.mul_(x)
        return y


class OutOfPlace(InPlace):
    def forward(self, x):
        y = torch.sigmoid(self.linear(x))
        return y * (x + y)


def gradient_of(host, checkpointing, gives_way):
    noisy = torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    with host.trainable(torch.zeros(3), 2) as model:
        if gives_way:
            assert model.give_way()
        if checkpointing:
            model.checkpoint_activations()
        prediction = model.predict(noisy * 1, torch.tensor([3, 4]), [1, 1])
        return torch.autograd.grad(prediction.square().sum(), noisy)[0]


def host_with(block):
    host = SmallHost()
    weights = host.network.state_dict()
    host.network = nn.Sequential(block())
    host.network.load_state_dict(weights)
    return host


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_that_gives_way_does_what_autograd_refuses(checkpointing):
    expected = gradient_of(host_with(OutOfPlace), False, False)
    with pytest.raises(RuntimeError, match="place"):
        gradient_of(host_with(InPlace), checkpointing, False)
    assert torch.allclose(gradient_of(host_with(InPlace), checkpointing, True), expected, rtol=1e-6)


def test_a_model_gives_way_once_and_the_next_of_its_host_need_not_be_asked():
    host = SmallHost()
    with host.trainable(torch.zeros(3), 1) as model:
        assert not model.is_tolerant
        assert model.give_way() and not model.give_way()
    with host.trainable(torch.zeros(3), 1) as model:
        assert model.is_tolerant and not model.give_way()
    with SmallHost().trainable(torch.zeros(3), 1) as model:
        assert not model.is_tolerant


def test_checkpoints_that_were_there_before_it_gave_way_do_so_too():
    host, noisy = host_with(InPlace), torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_()
    with host.trainable(torch.zeros(3), 2) as model:
        model.checkpoint_activations()
        model.give_way()
        prediction = model.predict(noisy * 1, torch.tensor([3, 4]), [1, 1])
        [found] = torch.autograd.grad(prediction.square().sum(), noisy)
    assert torch.allclose(found, gradient_of(host_with(OutOfPlace), False, False), rtol=1e-6)


# Which model it is


def test_a_base_model_s_fingerprint():
    plain = SmallHost()
    assert plain.fingerprint() == SmallHost().fingerprint()
    assert len(plain.fingerprint()) == 16
    other = SmallHost()
    with torch.no_grad():
        other.network[0].linear.bias += 1
    assert other.fingerprint() != plain.fingerprint()
    assert plain.facts() == {"textinv.base_model": plain.fingerprint()}
