"""Whether anything was learnt, in words: what a run says of its result when it ends."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..embedding import Embedding, unread_text
from ..errors import UserError
from ..hosts.base import Host

log = logging.getLogger("textinv")

# Of a usual word's norm. One step at a rate of 0.002 can move a vector of CLIP-L by 0.14.
UNMOVED = 0.01
# Of a usual word's norm. In the toy world (4 vectors, 100 steps of 4) 91 % of what else a prompt asks for is in the
# pictures at a norm of 5, and 62 % at 15 and above. CLIP-L's words have 0.4, and trained vectors often above 20, which
# costs them position and context (Kim et al. 2025, arXiv 2512.13672).
TOO_LONG = 10
# Of the fixed loss; less is none.
LEAST_GAIN = 0.001
# Of the largest number in a conditioning: the same vectors go through the same text encoder.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Moved:
    """The vectors of one text encoder.

    distance: of where they are from where they were, the mean. norm: of the longest one. still: how many are where they
    were. word_norm: see `Host.word_norms`.
    """

    distance: float
    norm: float
    still: int
    word_norm: float


@dataclass(frozen=True)
class Verdict:
    """What to think of a run's result.

    text: some sentences for the person. is_good: none of them is a warning. fixed_loss: before the first step and after
    the last, None where it was not taken. vectors: by encoder key. is_read: whether the saved file gives what was
    trained, None where that was not tried.
    """

    text: str
    is_good: bool
    fixed_loss: tuple[float, float] | None
    vectors: Mapping[str, Moved]
    is_read: bool | None

    def facts(self) -> dict[str, Any]:
        """All of it, of the kinds JSON knows."""
        return asdict(self)

    @classmethod
    def read(cls, facts: Any) -> "Verdict | None":
        """What `facts` has said in a file; None for anything else."""
        try:
            vectors = {key: Moved(**moved) for key, moved in facts["vectors"].items()}
            fixed_loss = facts["fixed_loss"] and tuple(facts["fixed_loss"])
            return cls(**{**facts, "vectors": vectors, "fixed_loss": fixed_loss})
        except (TypeError, KeyError, AttributeError):
            return None


def verdict(
    before: Embedding,
    after: Embedding,
    word_norms: Mapping[str, float],
    fixed_loss: tuple[float, float] | None = None,
    off: float | None = None,
    unread: Sequence[str] = (),
) -> Verdict:
    """Compare what was learnt with what it was before.

    word_norms: see `Host.word_norms`. fixed_loss: before the first step and after the last. off: see `Host.read_back`,
    None where that was not tried. unread: see `Host.unread`.
    """
    vectors = {key: _moved(before, after, key, norm) for key, norm in word_norms.items()}
    is_read = None if off is None else off <= ROUNDING
    distance = max(moved.distance / moved.word_norm for moved in vectors.values())
    norm = max(moved.norm / moved.word_norm for moved in vectors.values())
    still, count = sum(moved.still for moved in vectors.values()), sum(map(len, after.vectors.values()))

    wrong, right = [], []
    if distance < UNMOVED:
        by = "have not moved" if still == count else f"have hardly moved, by {distance:.1g} of a word's norm"
        wrong.append(
            f"Nothing was learnt: the vectors {by}. Set a higher learning rate; where that changes nothing, see that "
            "the prompts name the embedding."
        )
    if fixed_loss is not None:
        was, now = fixed_loss
        if now <= (1 - LEAST_GAIN) * was:
            right.append(f"The fixed loss fell from {was:.4f} to {now:.4f}, by {1 - now / was:.1%}.")
        else:
            wrong.append(f"The fixed loss did not fall: it was {was:.4f} before and is {now:.4f} now.")
    if norm > TOO_LONG:
        times = f"{norm:.0f}" if norm < 1e6 else f"{norm:.0e}"
        wrong.append(
            f"The longest vector has {times} times the norm of a usual word, which swallows the rest of a prompt: "
            "set a lower learning rate or fewer steps, or take an earlier copy from the run's folder."
        )
    elif distance >= UNMOVED:
        right.append(
            f"The vectors moved by {distance:.2g} times the norm of a usual word, and the longest now has {norm:.2g} "
            "times that norm."
        )
    if fixed_loss is None and distance >= UNMOVED:
        right.append(
            "Whether that is a gain is not known: there is no fixed loss from before the first step to compare with "
            "(evaluate_every says when it is taken)."
        )
    if 0 < still < count:
        right.append(f"{still} of {count} vectors have not moved, as no prompt used them.")
    if off is not None and is_read:
        right.append(f"The saved file gives {'exactly ' if off == 0 else ''}the conditioning that was trained.")
    elif off is not None:
        wrong.append(
            "The saved file, read as prompts read it, does not give the conditioning that was trained: see what the "
            "log says of the file, and save the embedding again."
        )
    if unread:
        right.append(unread_text(", ".join(unread)))
    return Verdict(" ".join([*wrong, *right]), not wrong, fixed_loss, vectors, is_read)


def _moved(before: Embedding, after: Embedding, key: str, word_norm: float) -> Moved:
    # In double precision: the squares of what is finite are finite there.
    distances = (after.vectors[key].double() - before.vectors[key].double()).norm(dim=1)
    norms = after.vectors[key].double().norm(dim=1)
    return Moved(float(distances.mean()), float(norms.max()), int((distances == 0).sum()), word_norm)


def judged(
    host: Host,
    before: Embedding,
    learnt: Embedding | None,
    path: Path | None,
    evaluations: Sequence[tuple[int, float]],
) -> Verdict | None:
    """What to think of what was learnt, said in the log; None for nothing, and, with a line there, where looking at it
    goes wrong. path: of the saved file. evaluations: (step, fixed loss) of each time it was taken."""
    if learnt is None:
        return None
    taken, start = dict(evaluations), before.step or 0
    fixed_loss = (taken[start], taken[learnt.step]) if start in taken and learnt.step in taken else None
    try:
        off = _read_back(host, learnt, path)
        found = verdict(before, learnt, host.word_norms(), fixed_loss, off, host.unread)
    except host.interrupts:
        log.warning("textinv: looking at the result was cancelled; what was learnt is kept.")
        return None
    except Exception:  # whatever the text encoders raise, hours of training do not depend on it
        log.exception("textinv: looking at the result failed; what was learnt is kept.")
        return None
    level = logging.INFO if found.is_good else logging.WARNING
    log.log(level, f"textinv: {before.name}, step {learnt.step}: {found.text}")
    return found


def _read_back(host: Host, learnt: Embedding, path: Path | None) -> float | None:
    """See `Host.read_back`; infinite for what is no embedding, None where there is no file, or it cannot be opened."""
    if path is None:
        return None
    try:
        return host.read_back(learnt, path)
    except UserError as error:
        log.warning(f"textinv: the saved file cannot be read back: {error}")
        return math.inf
    except OSError as error:
        log.warning(f"textinv: whether the saved file can be read back could not be tried: {error}")
        return None
