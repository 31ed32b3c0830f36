"""Whose mistake it is, and how it is said."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

# From a setting's name in the core to what it is called where the person sets it.
Naming = Callable[[str], str]


class UserError(ValueError):
    """What the person at the graph can mend; the message says what is wrong, with the values, and what to do.

    Everything else that is raised is a mistake of ours, and keeps its traceback.
    """


class TrainingError(UserError):
    """A training cannot go on, or not start."""


class SettingError(UserError):
    """What a setting mends. The message calls it as the core does, which is what a node's input is called too; where
    it is a flag, or a key in a file, `sentence` says the same with that.

    sentence: makes the message, out of a Naming.
    """

    def __init__(self, sentence: Callable[[Naming], str]):
        super().__init__(sentence(str))
        self.sentence = sentence


def check_choice(setting: str, value: Any, choices: Iterable[str]) -> None:
    """Raise SettingError, with the nearest there is, unless `value` is one of `choices`."""
    known = list(choices)
    if value not in known:
        guess = did_you_mean(str(value), known)
        raise SettingError(lambda name: f"{name(setting)} cannot be {value!r}; there are {', '.join(known)}.{guess}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question after the nearest of `known`, with a space before it; "" where none is near."""
    near = get_close_matches(word, [each for each in known if each != word], 1)
    return f" Did you mean {near[0]!r}?" if near else ""
