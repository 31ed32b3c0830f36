"""Tables as RESULTS.md has them, and the figures in their cells."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

Statistic = Callable[..., Any]  # as np.mean and np.median: with `axis`, None for all


def row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(titles: Sequence[str]) -> str:
    """The first two lines of a table."""
    return f"{row(titles)}\n{'|---' * len(titles)}|"


def table(titles: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    return "\n".join([header(titles), *map(row, rows)])


def interval(values: Any, of: Statistic = np.mean, *more: Any) -> tuple[float, float, float]:
    """A statistic of values [characters, seeds], and its 95 % percentile bootstrap interval (10,000 resamples, seed 0).

    Characters and seeds are resampled, each as a whole (Owen 2007, "The pigeonhole bootstrap"): neither the lessons of
    one character are independent, nor those of one seed, which have noise and places in common. more: other values of
    the same lessons, resampled alike, for a statistic of several.
    """
    given = [np.asarray(each, dtype=float) for each in (values, *more)]
    rng = np.random.default_rng(0)
    characters, seeds = (rng.integers(n, size=(10_000, n)) for n in given[0].shape)
    resampled = [each[characters[:, :, None], seeds[:, None, :]].reshape(10_000, -1) for each in given]
    # An order statistic, as some values may be infinite.
    low, high = np.quantile(of(*resampled, axis=1), [0.025, 0.975], method="nearest")
    return float(of(*given, axis=None)), float(low), float(high)


def percent(shares: Any, of: Statistic = np.mean, sign: bool = False) -> str:
    """`interval` of shares in 0..1, or with a sign of their differences, in percent."""
    form = "{:+.0f}" if sign else "{:.0f}"
    middle, low, high = (form.format(100 * value) for value in interval(shares, of))
    return f"{middle} ({low} to {high})"


def until(values: Any) -> str:
    """`interval` of a median where some values are infinite: lessons that did not get there in time."""
    middle, low, high = (f"{value:.3g}" if math.isfinite(value) else "never" for value in interval(values, np.median))
    return f"{middle} ({low} to {high})"


def times(less: Any, more: Any) -> str:
    """How many times `less` goes into `more`, by their medians over lessons, with its `interval`; some may be infinite.
    Nothing where it never gets there; in a resample without it, no times, wherever the other gets."""

    def ratio(a: Any, b: Any, axis: int | None) -> Any:
        at = np.asarray(np.median(a, axis=axis))
        return np.divide(np.median(b, axis=axis), at, out=np.zeros_like(at), where=np.isfinite(at))

    if not math.isfinite(np.median(less)):
        return ""
    middle, low, high = (f"{value:.1f}" if math.isfinite(value) else "many" for value in interval(less, ratio, more))
    return f"{middle} ({low} to {high})"
