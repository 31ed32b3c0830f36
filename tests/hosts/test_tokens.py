import pytest
import torch

from textinv_core.errors import UserError
from textinv_core.hosts.tokens import Token, tokens, windows

START, END, PAD = 1, 2, 0
VECTORS = torch.arange(3)[:, None].repeat(1, 2).float()


def tokenize(text: str) -> list[int]:
    """One token a word: the number it is, or 9."""
    return [int(word) if word.isdigit() else 9 for word in text.replace(",", " , ").split()]


def read(prompt: str) -> list[list]:
    """The pieces of `prompt`: ids, `v0`, `v1`, ... for vectors, and `x1.2` behind tokens with that weight."""
    groups = tokens(prompt, tokenize, lambda name: VECTORS[:2] if name == "cat" else None)
    return [[shown(token) for token in group] for group in groups]


def shown(token: Token):
    what = f"v{int(token.what[0])}" if isinstance(token.what, torch.Tensor) else token.what
    return what if token.weight == 1 else f"{what} x{token.weight:g}"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", []),
        ("5 6", [[5, 6]]),
        ("embedding:cat", [["v0", "v1"]]),
        ("5 embedding:cat 6", [[5], ["v0", "v1"], [6]]),
        ("5 embedding:cat, 6", [[5], ["v0", "v1"], [9, 6]]),
        ("embedding:cat embedding:cat", [["v0", "v1"], ["v0", "v1"]]),
        ("embedding:other 5", [[5]]),
        ("embedding:catty", []),
        ("5embedding:cat", [[9]]),
        ("(5:1.5) 6", [["5 x1.5"], [6]]),
        ("(5 (6:2)) 7", [["5 x1.1"], ["6 x2"], [7]]),
        ("((5))", [["5 x1.21"]]),
        ("(embedding:cat:0.5) 5", [["v0 x0.5", "v1 x0.5"], [5]]),
        (r"\(5\)", [[9]]),
    ],
)
def test_tokens(prompt, expected):
    assert read(prompt) == expected


@pytest.mark.parametrize("prompt", ["embedding:", "5 embedding: ", "(embedding:)"])
def test_no_name(prompt):
    with pytest.raises(UserError, match="without a name"):
        read(prompt)


def fill(*lengths: int, size: int = 16) -> list[list[int]]:
    """Windows for pieces of these lengths; the tokens of the first are 10, of the second 11, ..."""
    groups = [[Token(10 + n)] * length for n, length in enumerate(lengths)]
    return [[token.what for token in window] for window in windows(groups, size, START, END, PAD)]


def test_padding_stands_behind_the_end():
    assert fill() == [[1, 2, *[0] * 14]]
    assert fill(3) == [[1, 10, 10, 10, 2, *[0] * 11]]


def test_a_window_that_is_just_full_stays_alone():
    assert fill(14) == [[1, *[10] * 14, 2]]
    assert fill(7, 7) == [[1, *[10] * 7, *[11] * 7, 2]]


def test_long_pieces_flow_over():
    assert fill(15) == [[1, *[10] * 14, 2], [1, 10, 2, *[0] * 13]]
    assert fill(10, 8) == [[1, *[10] * 10, *[11] * 4, 2], [1, *[11] * 4, 2, *[0] * 10]]
    assert fill(14, 8)[1] == [1, *[11] * 8, 2, *[0] * 6]


def test_short_pieces_stay_together():
    assert fill(10, 7) == [[1, *[10] * 10, 2, *[0] * 4], [1, *[11] * 7, 2, *[0] * 7]]


def test_windows_too_small_for_a_short_piece():
    assert fill(7, size=6) == [[1, *[10] * 4, 2], [1, *[10] * 3, 2, 0]]


def test_weights_stay_with_their_tokens():
    [window] = windows([[Token(7, 1.5)]], 4, START, END, PAD)
    assert window == [(1, 1.0), (7, 1.5), (2, 1.0), (0, 1.0)]
