from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textinv_core.embedding import (
    Embedding,
    check_name,
    continued,
    create_embedding,
    initial_vectors,
    safe_name,
    with_model,
)
from textinv_core.errors import UserError


@given(st.text() | st.from_regex(r"[-_.\d einfNaO]{1,120}", fullmatch=True))
def test_safe_name_is_always_allowed_and_stays(text):
    name = safe_name(text)
    assert check_name(name) == name
    assert safe_name(name).strip("_") == name.strip("_")


@given(st.from_regex(r"[a-z][a-z0-9_-]{0,40}cat", fullmatch=True))
def test_good_names_are_kept(name):
    assert check_name(name) == safe_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("my cat", "my_cat"), ("a/../b", "a_b"), ("", "embedding"), ("1.5", "my_1_5"), ("7", "my_7"), ("NaN", "my_NaN")],
)
def test_names_are_suggested(text, name):
    # 1_5 would not do for 1.5: to Python, and so to the host, it is the number 15.
    assert safe_name(text) == name
    with pytest.raises(UserError, match=f"Try '{name}'"):
        check_name(text)


@pytest.mark.parametrize("name", ["con", "LPT1", "1e5", "inf", "x" * 101, "a.b", "a\n", "é"])
def test_names_refused(name):
    with pytest.raises(UserError, match="cannot be called"):
        check_name(name)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({}, "no vectors"),
        ({"clip_l": torch.zeros(3)}, r"\[3\]"),
        ({"clip_l": torch.zeros(0, 3)}, r"\[0, 3\]"),
        ({"clip_l": torch.zeros(2, 3), "clip_g": torch.zeros(2, 3, dtype=torch.float16)}, "'clip_g'.*float16"),
    ],
)
def test_bad_vectors_are_refused(vectors, message):
    with pytest.raises(ValueError, match=message) as error:
        Embedding("cat", vectors)
    assert type(error.value) is ValueError  # our mistake, not the person's


@pytest.mark.parametrize("name", ["my cat", "7", "con", ""])
def test_a_name_that_was_not_checked_is_our_mistake(name):
    with pytest.raises(ValueError, match=f"{name!r} is no name") as error:
        Embedding(name, {"clip_l": torch.zeros(1, 3)})
    assert type(error.value) is ValueError


def test_facts_of_an_earlier_model_go():
    old = {"textinv.base_model": "a", "textinv.sd_checkpoint": "b", "textinv.sd_checkpoint_name": "c"}
    embedding = Embedding("cat", {"clip_l": torch.zeros(1, 4)}, 3, {**old, "author": "me"})
    trained = with_model(embedding, {"textinv.base_model": "d"})
    assert trained.metadata == {"author": "me", "textinv.base_model": "d"}
    assert replace(trained, metadata=embedding.metadata) == embedding


def test_shapes_in_words():
    embedding = Embedding("cat", {"clip_l": torch.zeros(4, 768), "clip_g": torch.zeros(5, 1280)})
    assert embedding.shapes == "clip_l 4 x 768, clip_g 5 x 1280"


@pytest.mark.parametrize(
    ("length", "vectors", "keep_first", "indices"),
    [
        (2, 4, False, [0, 0, 1, 1]),
        (2, 3, True, [0, 0, 1]),
        (3, 4, True, [0, 0, 1, 2]),
        (4, 2, False, [0, 2]),
        (4, 2, True, [0, 1]),
        (3, 0, True, [0, 1, 2]),
        (3, 3, False, [0, 1, 2]),
    ],
)
def test_initial_vectors_are_the_init_texts(length, vectors, keep_first, indices):
    rows = torch.randn(length, 5)
    initial = initial_vectors(rows, vectors, keep_first)
    assert torch.equal(initial, rows[indices])
    initial += 1  # they are trained in place, the encoder's own table stays
    assert not torch.equal(initial, rows[indices])


def test_initial_vectors_without_an_init_text():
    assert torch.equal(initial_vectors(torch.zeros(0, 5), 3, True), torch.zeros(3, 5))
    with pytest.raises(UserError, match="cannot be empty"):
        initial_vectors(torch.zeros(0, 5), 0, True)


def test_a_created_embedding_starts_as_its_text_in_every_encoder():
    rows = {"clip_l": torch.randn(3, 4), "clip_g": torch.randn(2, 6)}
    made = create_embedding("cat", rows, 2, keep_first=True)
    assert (made.name, made.step) == ("cat", 0)
    assert torch.equal(made.vectors["clip_l"], rows["clip_l"][:2]) and torch.equal(
        made.vectors["clip_g"], rows["clip_g"]
    )
    with pytest.raises(UserError, match="Try 'my_cat'"):
        create_embedding("my cat", rows, 2, keep_first=True)


@pytest.mark.parametrize(
    ("name", "step", "goes_on_as"),
    [
        ("cat-500", 500, "cat"),
        ("cat-500", 400, "cat-500"),
        ("cat-0", 0, "cat-0"),  # new, and called so by somebody
        ("cat-None", None, "cat-None"),
    ],
)
def test_a_copy_is_trained_on_under_the_name_of_its_training(name, step, goes_on_as):
    embedding = Embedding(name, {"clip_l": torch.ones(1, 4)}, step)
    assert continued(embedding).name == goes_on_as
    assert continued(embedding, "dog").name == "dog"
