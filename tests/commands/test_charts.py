"""The plot of losses and the comparison, as pixels."""

import pytest
import torch

from textinv_core.commands import charts
from textinv_core.commands.charts import Column, comparison, loss_plot, running_mean, ticks

RED, GREEN, BLUE = (torch.tensor(c, dtype=torch.float32) for c in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def where(picture, colour):
    """Rows and columns of the pixels of a colour."""
    return torch.nonzero((picture - torch.as_tensor(colour)).abs().amax(-1) < 0.02, as_tuple=True)


def line(picture):
    return where(picture, torch.tensor(charts.LINE) / 255)


def test_a_running_mean_looks_back():
    assert running_mean([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert running_mean([1, 2, 3], 9) == [1, 1.5, 2]


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0.13, 6, [0, 0.05, 0.1]),
        (1, 300, 8, [50, 100, 150, 200, 250, 300]),
        (0, 7e-5, 6, [0, 2e-5, 4e-5, 6e-5]),
    ],
)
def test_ticks_are_round(low, high, most, expected):
    assert ticks(low, high, most) == pytest.approx(expected)


def test_the_line_falls_where_the_loss_does():
    picture = loss_plot([1.0] * 100 + [0.5] * 100, "cat")
    assert picture.shape == (500, 900, 3) and picture.min() >= 0 and picture.max() <= 1
    rows, columns = line(picture)
    left, right = rows[columns < 300].float().mean(), rows[columns > 700].float().mean()
    bottom = 440
    assert (bottom - right) / (bottom - left) == pytest.approx(0.5, abs=0.02)


def test_one_high_loss_does_not_flatten_the_rest():
    rows, _ = line(loss_plot([0.1] * 300 + [50.0] + [0.1] * 300, "cat"))
    assert rows.float().median() < 430


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [0.1] * 5000])
def test_any_number_of_losses_can_be_plotted(losses):
    assert loss_plot(losses, "cat", first_step=41).isfinite().all()


def test_fixed_losses_are_a_line_of_their_own():
    fixed = [(0, 2.0), (100, 1.0), (200, 0.5)]
    picture = loss_plot([0.2] * 200, "cat", fixed=fixed)
    rows, columns = where(picture, torch.tensor(charts.FIXED) / 255)
    left, right = rows[columns < 100].float().mean(), rows[(columns > 860)].float().mean()
    assert (440 - right) / (440 - left) == pytest.approx(0.25, abs=0.03)
    alone = loss_plot([0.2] * 200, "cat", fixed=fixed[:1])  # of a training that was stopped before the next
    assert not len(where(alone, torch.tensor(charts.FIXED) / 255)[0])


def plain(*colours):
    return torch.stack([colour.expand(4, 4, 3) for colour in colours])


def test_pictures_stand_in_rows_under_their_column():
    picture = comparison([Column("one", plain(RED, GREEN, BLUE, RED)), Column("two", plain(GREEN, GREEN))], cell=50)
    rows, columns = where(picture, BLUE)
    assert len(rows) == 50 * 50  # every pixel of it, unsmoothed
    red_rows, red_columns = where(picture, RED)
    assert rows.min() == red_rows.min() + 80  # a cell and the line for its caption
    assert columns.min() == red_columns.min()
    green_rows, green_columns = where(picture, GREEN)
    assert (green_columns > red_columns.max()).any() and green_rows.max() < rows.min()


def darkness(picture, top, bottom):
    return float((1 - picture[top:bottom]).sum())


def test_captions_stand_below_their_rows_and_one_below_the_last():
    def drawn(*captions):
        return comparison([Column("", torch.ones(4, 4, 4, 3), captions)], cell=50)

    first, last = (60 + 50, 60 + 80), (60 + 130, 60 + 160)
    assert darkness(drawn("below"), *first) == 0 and darkness(drawn("below"), *last) > 0
    assert darkness(drawn("a", "b"), *first) > 0 and darkness(drawn("a", "b"), *last) > 0
    assert darkness(drawn(), 0, 250) == 0


def test_a_column_is_as_wide_as_its_words():
    narrow, wide = (comparison([Column("", plain(RED), [text])]).shape[1] for text in ("a", "a word " * 12))
    assert wide > narrow
