"""`textinv inspect`: what is in an embedding file."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from .output import USAGE, AsJson, Report, Whole, failing
from .paths import check_file, check_model

if TYPE_CHECKING:
    from ..embedding import Embedding


def inspect(
    file: Annotated[
        Path, Parameter(help="An embedding: .safetensors, .pt, .bin, a picture with one in it, or a LoRA.")
    ],
    /,
    *,
    name: Annotated[
        str | None, Parameter(help="Of several embeddings that a LoRA brings along, the one to show.")
    ] = None,
    model: Annotated[
        Path | None, Parameter(help="The model it is for, to compare it with the words that model knows.")
    ] = None,
    model_config: Annotated[
        Path | None, Parameter(help="For a single file of unusual shape: its configurations.")
    ] = None,
    words: Annotated[Whole, Parameter(help="How many of the nearest words to show.", validator=Number(gte=1))] = 5,
    as_json: AsJson = False,
) -> None:
    """Show what is in an embedding file: name, steps, model, and each vector's norm and nearest words.

    For example:

        textinv inspect my-cat.safetensors --model sd15.safetensors

    The norms of a model's own words are near 0.4 with SD1.x; vectors far above that have been trained too hard, and
    crowd out the rest of a prompt. The nearest words, with their similarity from -1 to 1, are seldom telling.
    """
    report = Report(as_json)
    with failing(report, USAGE):
        check_file("FILE", file)
        if model:
            check_model(model, model_config)
    with failing(report):
        from ..formats import load_embedding

        embedding = load_embedding(file, name)
        nearest = {}
        if model:
            from .inputs import load_model

            nearest = load_model(model, model_config, "cpu", "fp32").nearest_words(embedding, words)
        facts = _facts(embedding, nearest)
        report.facts(file=str(file), **facts)
        _show(report, facts)


def _facts(embedding: "Embedding", nearest: dict[str, list[list[tuple[str, float]]]]) -> dict[str, Any]:
    """All there is to say of an embedding, of the kinds JSON knows."""
    encoders = {}
    for key, rows in embedding.vectors.items():
        # In double precision: the squares of what is finite are finite there.
        vectors: list[dict[str, Any]] = [{"norm": norm} for norm in rows.double().norm(dim=1).tolist()]
        for vector, words in zip(vectors, nearest.get(key, []), strict=False):
            # Tokens that do not count come last, infinitely far away.
            counted = [(word, similarity) for word, similarity in words if math.isfinite(similarity)]
            vector["words"] = [{"word": word, "similarity": similarity} for word, similarity in counted]
        encoders[key] = {"width": rows.shape[1], "vectors": vectors}
    base = embedding.metadata.get("textinv.sd_checkpoint_name") or embedding.metadata.get("textinv.base_model")
    return {
        "name": embedding.name,
        "step": embedding.step,
        "base_model": base,
        "encoders": encoders,
        "metadata": dict(embedding.metadata),
    }


def _show(report: Report, facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    report.say(f"embedding:{facts['name']}")
    report.say(f"steps: {'unknown' if facts['step'] is None else facts['step']}")
    report.say(f"model: {_line(facts['base_model'] or 'unknown')}")
    for key, value in facts["metadata"].items():
        report.say(f"{_line(key)}: {_line(value)}")
    for key, encoder in facts["encoders"].items():
        vectors = encoder["vectors"]
        title = Text(f"{key}: {len(vectors)} x {encoder['width']}", style="table.title")
        # As wide as its title, which would go on in a second line.
        table = Table("vector", "norm", title=title, title_justify="left", min_width=len(title))
        if "words" in vectors[0]:
            table.add_column("nearest words")
        for number, vector in enumerate(vectors, 1):
            words = ", ".join(f"{_line(each['word'])} {each['similarity']:.2f}" for each in vector.get("words", []))
            table.add_row(f"{number}", f"{vector['norm']:.3f}", *([Text(words)] if "words" in vector else []))
        report.console.print(table)


def _line(text: str) -> str:
    """Somebody else's text as one line that does nothing to a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:300])
