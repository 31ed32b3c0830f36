"""The order an embedding's vectors are put into the prompt in while training.

After pull request 119 of rinongal/textual_inversion (2022), which trains several vectors in changing order so that
each stands on its own. Orders are for training alone: files, previews and prompts keep the stored order.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from typing_extensions import Doc

from .errors import SettingError, did_you_mean

if TYPE_CHECKING:
    from torch import Generator

Per = Literal["sample", "occurrence", "batch"]

# Mode -> how many vectors keep their place at the front and at the back.
FIXED = {"all": (0, 0), "trailing": (1, 0), "leading": (0, 1), "between": (1, 1), "progressive": (1, 1)}
# What `dynamic` is with so many vectors in use; `between` with more.
DYNAMIC = {1: "off", 2: "all", 3: "trailing"}
MODES = ("off", *FIXED, "dynamic")
ALIASES = {True: "all", "on": "all", "true": "all", False: "off", "false": "off"}


@dataclass(frozen=True)
class ShuffleConfig:
    """How the vectors of an embedding are shuffled, and when they come into use.

    mode: True, `on` and `true` are read as `all`, False and `false` as `off`; `progressive` puts the embedding's final
        vector last from the second unlocked one on.
    per: what shares an order.
    unlock_every: optimizer steps, >= 1.

    Raises UserError for any other mode, per or unlock_every.
    """

    mode: Annotated[
        str | bool,
        Doc(
            "Which vectors change places: all; trailing (all but the first); leading (all but the last); between (all "
            "but the first and last); progressive (between, with a fixed last vector while vectors are unlocked); "
            "dynamic (all, trailing or between, for 2, 3 or more vectors in use); off."
        ),
    ] = "off"
    per: Annotated[
        Per,
        Doc(
            "How often a new order is drawn: for each picture's prompt (sample), for each place in a prompt that names "
            "the embedding (occurrence), or once for the whole batch."
        ),
    ] = "sample"
    progressive_words: Annotated[
        bool,
        Doc(
            "Start training with one vector and unlock the others one by one. Locked ones are left out of the prompt "
            "and not trained, so training should last unlock_every steps for each vector."
        ),
    ] = False
    unlock_every: Annotated[
        int,
        Doc(
            "With progressive words: after how many optimizer steps the next vector is unlocked; the paper's code uses "
            "2000."
        ),
    ] = 2000

    def __post_init__(self):
        object.__setattr__(self, "mode", ALIASES.get(self.mode, self.mode))
        if self.mode not in MODES:
            guess = did_you_mean(str(self.mode), MODES)
            raise SettingError(
                lambda name: (
                    f"There is no shuffle mode {self.mode!r} for {name('mode')}. "
                    f"Use one of {', '.join(MODES)}, on, true or false.{guess}"
                )
            )
        if self.per not in get_args(Per):
            guess = did_you_mean(str(self.per), get_args(Per))
            raise SettingError(
                lambda name: (
                    f"Vectors cannot be shuffled {name('per')} {self.per!r}. "
                    f"Use one of {', '.join(get_args(Per))}.{guess}"
                )
            )
        if self.unlock_every < 1:
            raise SettingError(lambda name: f"{name('unlock_every')} is {self.unlock_every}; use 1 step or more.")

    def unlocked(self, n_vectors: int, step: int) -> int:
        """How many of `n_vectors` are in use at `step`, the number of the optimizer step being run, from 1."""
        return min(n_vectors, 1 + step // self.unlock_every) if self.progressive_words else n_vectors

    def order(self, n_vectors: int, step: int, generator: "Generator") -> list[int]:
        """Indices into the full embedding in the order to use them, locked ones absent.

        n_vectors: rows of the full embedding, >= 1. step: the number of the optimizer step being run, from 1.
        generator: a CPU generator of the shuffle's own, so that shuffling changes no other noise. It is drawn from
            only where two vectors or more may change places; every permutation of those is equally likely.
        """
        n = self.unlocked(n_vectors, step)
        rows = list(range(n))
        if self.mode == "progressive" and n > 1:
            rows[-1] = n_vectors - 1
        mode = DYNAMIC.get(n, "between") if self.mode == "dynamic" else self.mode
        first, last = FIXED.get(str(mode), (n, 0))
        movable = rows[first : n - last]
        if len(movable) < 2:
            return rows
        import torch  # not above: the command reads its flags off this module, and shows its help without torch

        shuffled = [movable[i] for i in torch.randperm(len(movable), generator=generator).tolist()]
        return rows[:first] + shuffled + rows[n - last :]
