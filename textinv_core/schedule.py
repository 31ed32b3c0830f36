"""Learning rates that change at listed steps: `0.005:100, 0.001:1000, 0.0005`."""

import math
from bisect import bisect_right

from .errors import SettingError, UserError

MOST = 1e30  # what Adam makes of it is still a float32


def _read_item(item: str) -> tuple[float, float]:
    """`rate`, `rate:step` or `rate:-1` -> (rate, step it lasts until); a rate to the end lasts until inf."""
    rate_text, colon, step_text = item.partition(":")
    try:
        rate = float(rate_text)
        step = int(step_text) if colon else -1
    except ValueError:
        raise UserError(
            f"The learning rate {item!r} cannot be read. Write a rate, or a rate and the step it lasts until, "
            "such as 0.005:100."
        ) from None
    if not 0 <= rate <= MOST:
        raise UserError(f"The learning rate {item!r} is no finite number of 0 or more; {MOST:g} is the most.")
    if step < 1 and step != -1:
        raise UserError(f"The learning rate {item!r} ends at step {step}. Use a step of 1 or more, or -1 for the end.")
    return rate, math.inf if step == -1 else step


def _read_items(text: str) -> list[tuple[float, float]]:
    """The listed (rate, step it lasts until), in order; steps increase."""
    pieces: list[tuple[float, float]] = []
    reached, previous = 0.0, ""
    for item in filter(None, map(str.strip, text.split(","))):
        rate, until = _read_item(item)
        if reached == math.inf:
            whole = f"{previous}.{item}"
            advice = f"Give {previous!r} a step, or remove {item!r}."
            if previous.isdigit() and item[0].isdigit() and f"{previous},{item}" in text:
                advice = f"A comma separates rates; if a decimal point was meant, write {whole!r}."
            raise UserError(
                f"The learning rate {item!r} would never be used: {previous!r} before it lasts to the end. {advice}"
            )
        if until <= reached:
            raise UserError(
                f"The learning rate {item!r} ends no later than {previous!r} before it; steps must increase."
            )
        pieces.append((rate, until))
        reached, previous = until, item
    if not pieces:
        raise UserError(
            "The learning rate is empty. Write one rate, such as 0.005, or a list such as 0.005:100, 0.001."
        )
    return pieces


class LearningRateSchedule:
    """Piecewise constant learning rates in AUTOMATIC1111's grammar.

    text: items separated by commas, empty ones skipped. `rate:step` is this rate until, and not including, that
        step; `rate:-1` and a rate alone last to the end. Rates are 0 to 1e30, steps are >= 1 and increase.
    max_steps: the step training ends at, at the latest. Items beyond it are read, never reached.
    start: the step training goes on from, >= 0. Items that end at or before it are past.

    Steps are counted from 0: the optimizer step that makes an embedding's `step` 1 runs at rate_at(0).
    `last_step` is where training ends: the last listed step, or `max_steps` if that comes first. `moves` says whether
    any rate up to there is above 0.

    Raises UserError that names the item for one that is malformed, out of order or follows a rate without end,
    and UserError where no step is left to train.
    """

    def __init__(self, text: str, max_steps: int, start: int = 0):
        pieces = [(rate, until) for rate, until in _read_items(text) if until > start]
        if max_steps <= start:
            raise SettingError(
                lambda name: (
                    f"No step is left to train: the embedding stands at step {start} of {max_steps}. Earlier steps "
                    f"count; set {name('steps')} to more than {start}."
                )
            )
        if not pieces:
            raise UserError(
                f"No step is left to train: every rate in {text!r} ends by step {start}, where the embedding stands. "
                "Add a later rate."
            )
        self._start = start
        self._rates = [rate for rate, _ in pieces]
        self._ends = [int(min(until, max_steps)) for _, until in pieces]
        self.last_step = self._ends[-1]
        self.moves = any(rate for rate, _ in self.spans)

    @property
    def spans(self) -> list[tuple[float, int]]:
        """Each rate up to the last step, and how many steps it lasts."""
        begins = [self._start, *self._ends]
        return [
            (rate, end - begin)
            for rate, begin, end in zip(self._rates, begins, self._ends, strict=False)
            if end > begin
        ]

    def rate_at(self, step: int) -> float:
        """The rate of the optimizer step `step`, start <= step < last_step; ValueError outside of that."""
        if not self._start <= step < self.last_step:
            raise ValueError(f"Step {step} is not trained; this run's steps are {self._start} to {self.last_step - 1}.")
        return self._rates[bisect_right(self._ends, step)]


def training_rates(text: str, max_steps: int, start: int = 0) -> LearningRateSchedule:
    """The rates of a training that is to learn something: some may be 0, for a pause.

    Raises UserError as LearningRateSchedule does, and where all that are left are 0.
    """
    rates = LearningRateSchedule(text, max_steps, start)
    if not rates.moves:
        raise UserError(f"Nothing would be learnt: all that is left of the learning rate {text!r} is 0.")
    return rates
