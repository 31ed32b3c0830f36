"""The embedding files that a command is given, checked before a model is loaded."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SettingError, UserError
from .plan import Plan

if TYPE_CHECKING:
    from ..embedding import Embedding


def load_only(file: Path) -> "Embedding":
    """The embedding in a file. Raises as `formats.load_embedding`, and UserError where there are several."""
    from ..embedding import safe_name
    from ..formats import list_bundled, load_embedding

    names = list_bundled(file)
    if len(names) > 1:
        one = shlex.join(["textinv", "convert", str(file), f"{safe_name(names[0])}.safetensors", "--name", names[0]])
        raise UserError(
            f"{file.name!r} holds {len(names)} embeddings: {', '.join(map(repr, names[:20]))}. Write the one you mean "
            f"into a file of its own first, as in\n{one}"
        )
    return load_embedding(file)


def load_embeddings(files: Sequence[Path]) -> "list[Embedding]":
    """What prompts may name. Raises as `load_only`, and UserError where two have one name."""
    embeddings = [load_only(file) for file in files]
    if again := [name for name, times in Counter(each.name for each in embeddings).items() if times > 1]:
        raise UserError(f"Two of the embeddings are called {again[0]!r}, after their files. Rename one of them.")
    return embeddings


def check_embeddings(plan: Plan) -> "Embedding":
    """What is trained, as far as it is known without the model: of a new embedding's vectors, whether they are zero.

    Raises as `load_embeddings`, UserError where one of those has the name of what is trained, and where no step is
    left.
    """
    import torch

    from ..embedding import Embedding, continued
    from ..schedule import training_rates

    if plan.from_:
        start = continued(load_only(plan.from_), plan.name)
    else:
        start = Embedding(plan.name, {"clip_l": torch.full((1, 1), float(bool(plan.init_text.strip())))}, step=0)
    if start.name in (each.name for each in load_embeddings(plan.embedding)):
        raise SettingError(
            lambda name: (
                f"The embedding that is trained and one of {name('embedding')} are both called {start.name!r}. Rename "
                f"that file, or give another {name('name')}."
            )
        )
    training_rates(plan.train.learning_rate, plan.train.steps, start.step or 0)
    return start
