"""`textinv demo`: the whole of it, on a small model and eight pictures that come along."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..errors import UserError
from ..image_settings import ImageSettings
from ..prompts import TEMPLATES
from ..shuffle import ShuffleConfig
from ..training.settings import TrainSettings
from .output import USAGE, AsJson, Report, failing, logging_to_stderr
from .paths import check_output
from .plan import Plan

if TYPE_CHECKING:
    from ..embedding import Embedding

WORLD = Path(__file__).parents[1] / "toyworld"
SIZE = 64
NAME = "my-character"
SETTINGS = TrainSettings(  # at a rate at which 200 steps are enough
    template=TEMPLATES["subject"],
    steps=200,
    learning_rate="0.005",
    batch_size=4,
    gradient_accumulation=1,
    save_every=0,
)
INIT_TEXT, VECTORS = "figure", 4
SURROUNDINGS = ("red background", "pink hat", "yellow shirt", "red background, green hat")  # in none of the pictures
ROWS, ACROSS = 4, 2
SAMPLING_STEPS, GUIDANCE = 20, 4.0


def demo(
    *,
    out: Annotated[Path, Parameter(help="The folder for what comes out.")] = Path("textinv-demo"),
    as_json: AsJson = False,
) -> None:
    """Show what this is about, in about two minutes on a CPU.

    A small model that comes along draws figures. It has no word for one character; from eight pictures it learns one,
    and draws that character again, also where it has never been. What it leaves: the embedding, a plot of the losses,
    and demo.png, which shows all of it in one picture.
    """
    report = Report(as_json)
    with failing(report, USAGE):
        check_output("out", out, f"textual_inversion/{NAME}")
    with failing(report), logging_to_stderr():
        if not WORLD.is_dir():
            raise UserError(
                "The demo's model is not here: releases of the node pack leave it out. Install textinv from a clone of "
                "its repository, as its README says."
            )
        paths = run(WORLD, out, report)
        report.facts(event="done", **{name: str(path) for name, path in paths.items()})
        report.say(f"The embedding: {paths['embedding']}")
        report.say(f"Its losses: {paths['loss']}")
        report.say(f"Open {paths['picture']} to see what it has learnt.")


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute with one thread: how many there are decides about rounding, and a hundred steps later about
    what is drawn. For so small a model a second one saves a fifth of the time at best; see benchmarks/RESULTS.md."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def run(world: Path, out: Path, report: Report, settings: TrainSettings = SETTINGS) -> dict[str, Path]:
    """Train on `world` and leave the files in `out`.

    world: a folder with toyworld.safetensors, its configurations, and pictures/ with eight pictures of one character.
    Returns where things are: `embedding`, `loss` and `picture`. Raises as `one_training.train_one`.
    """
    import torch

    from ..formats import save_embedding
    from ..hosts.base import Sampling
    from ..images import save_picture
    from .charts import Column, comparison, loss_plot
    from .inputs import load_model, load_pictures, starting_embedding
    from .one_training import train_one

    plan = Plan(
        model=world / "toyworld.safetensors",
        model_config=world,
        images=ImageSettings(world / "pictures", width=SIZE, height=SIZE),
        train=settings,
        shuffle=ShuffleConfig(),
        name=NAME,
        init_text=INIT_TEXT,
        vectors=VECTORS,
        device="cpu",
        output=out,
    )
    trained = train_one(plan, load_pictures(plan.images), report)

    host = load_model(plan.model, plan.model_config, plan.device, plan.precision)

    shape = host.latent_shape(SIZE, SIZE)

    def draw(embedding: "Embedding", addition: str, seeds: range) -> torch.Tensor:
        prompts = [f"embedding:{NAME}{addition}"] * len(seeds)
        return host.sample(prompts, seeds, shape, Sampling(SAMPLING_STEPS, GUIDANCE), [embedding])

    report.say("Drawing the character before and after")
    seeds = range(ROWS * ACROSS)
    prompt = f"embedding:{NAME}"
    elsewhere = [draw(trained.embedding, f", {words}", range(ACROSS)) for words in SURROUNDINGS]
    references = torch.stack([picture.pixels for picture in load_pictures(plan.images)[: ROWS * ACROSS]])
    picture = comparison(
        [
            Column("reference photos", references, [f"{len(references)} pictures to learn from"], ACROSS),
            Column("before", draw(starting_embedding(plan, host), "", seeds), [prompt], ACROSS),
            Column("after", draw(trained.embedding, "", seeds), [prompt], ACROSS),
            Column(
                "after in new surroundings",
                torch.cat(elsewhere),
                [f"{prompt}, {words}" for words in SURROUNDINGS],
                ACROSS,
            ),
        ]
    )
    paths = {"embedding": out / f"{NAME}.safetensors", "loss": out / "loss.png", "picture": out / "demo.png"}
    save_embedding(trained.embedding, paths["embedding"])
    save_picture(loss_plot(trained.losses, NAME), paths["loss"])
    save_picture(picture, paths["picture"])
    return paths
