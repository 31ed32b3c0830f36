"""What one training is to do, wherever that was said."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Doc

from ..embedding import check_name
from ..errors import SettingError, check_choice
from ..hosts.precision import PRECISIONS
from ..hosts.samplers import SAMPLERS, SCHEDULERS
from ..image_settings import ImageSettings
from ..schedule import training_rates
from ..shuffle import ShuffleConfig
from ..training.presets import PRESETS
from ..training.preview import Preview, check_preview
from ..training.settings import TrainSettings
from .paths import check_file, check_folder, check_model, check_output

CELL = 8  # pixels a side of the latents' cells, of all models that the command can use


@dataclass(frozen=True)
class Plan:
    """One training, from a model file to an embedding file.

    images, train, shuffle, preview: the tables of a settings file; without the last there are no previews. name: "" for
    that of the embedding to go on from.

    Raises UserError for what cannot be used; that files are there is `check_paths`' to say.
    """

    model: Annotated[
        Path,
        Doc(
            "The model to learn on: a single file (.safetensors), or a folder in diffusers' layout. SD1.x, SD2.x or "
            "SDXL."
        ),
    ]
    images: ImageSettings
    train: TrainSettings
    shuffle: ShuffleConfig = field(default_factory=ShuffleConfig)
    preview: Preview | None = None
    preset: Annotated[
        str,
        Doc(
            "Settings to start from. subject and style learnt as well as any that were measured; fast and fast-style "
            "learnt the same, on a small model, in a tenth of the time. What you set yourself wins; with another "
            "optimizer, set the learning rate too."
        ),
    ] = ""
    name: Annotated[
        str,
        Doc(
            "What prompts will call the embedding: embedding:NAME. Letters, digits, _ and - only. Required, but with "
            "--from it can stay as it is there."
        ),
    ] = ""
    init_text: Annotated[
        str,
        Doc(
            "The words it starts as. One for the kind of thing in your pictures, such as dog or watercolor, gives "
            "training a head start; empty starts from zeros."
        ),
    ] = "*"
    vectors: Annotated[
        int,
        Doc(
            "How many tokens of a prompt it takes up, 0 to 75. More hold more detail, need more pictures, and leave "
            "other words less say. 0 makes as many as the init text has tokens."
        ),
    ] = PRESETS["subject"]["vectors"]
    template: Annotated[
        tuple[str, ...],
        Doc(
            "The training prompts, of which each picture gets one at random: subject or style; subject_filewords or "
            "style_filewords, which add the picture's caption; none, the caption alone; or lines of your own with "
            "[name], and [filewords] if you like, each with a flag of its own."
        ),
    ] = ("subject",)
    from_: Annotated[
        Path | None,
        Doc(
            "An embedding file to train further, instead of a new one. Its steps count, so set more steps than it has."
        ),
    ] = None
    embedding: Annotated[
        tuple[Path, ...],
        Doc(
            "The file of another embedding, which prompts may name as embedding:NAME after the file; it is not "
            "trained. Can come several times."
        ),
    ] = ()
    model_config: Annotated[
        Path | None,
        Doc("For a single file of unusual shape: a folder with its configurations and tokenizer in diffusers' layout."),
    ] = None
    device: Annotated[
        str, Doc("Where the model runs: cpu, cuda, cuda:1, mps, and so on. auto takes the fastest there is.")
    ] = "auto"
    precision: Annotated[
        str,
        Doc(
            "What the model computes in: fp32, or bf16 or fp16, which take half the memory. auto is bf16 on a CUDA "
            "GPU, else fp32. The embedding itself is always fp32."
        ),
    ] = "auto"
    output: Annotated[
        Path, Doc("The folder for the embedding; each run's record goes to textual_inversion/NAME in it.")
    ] = Path("output")
    plot: Annotated[bool, Doc("Also leave a picture of the losses, loss.png, in the run's folder.")] = False

    def __post_init__(self):
        if not self.name and not self.from_:
            raise SettingError(
                lambda name: f"The embedding has no name. Give one with {name('name')}, or `name` in a settings file."
            )
        if self.name:
            check_name(self.name)
        training_rates(self.train.learning_rate, self.train.steps)  # says what is wrong before a model is loaded
        if not 0 <= self.vectors <= 75:
            raise SettingError(
                lambda name: (
                    "An embedding can take up 1 to 75 tokens of a prompt, or with 0 as many as its init text has; "
                    f"{name('vectors')} is {self.vectors}."
                )
            )
        if not self.vectors and not self.init_text.strip() and not self.from_:
            raise SettingError(
                lambda name: (
                    f"With {name('vectors')} 0 the init text decides how many there are, so {name('init_text')} "
                    "cannot be empty."
                )
            )
        check_choice("precision", self.precision, PRECISIONS)
        if self.preview:
            check_preview(self.preview, SAMPLERS, SCHEDULERS, CELL)
        if self.images.captions == "none" and any("[filewords]" in line for line in self.train.template):
            raise SettingError(
                lambda name: (
                    f"This template has [filewords], and {name('captions')} is none. Choose another "
                    f"{name('template')}, or auto."
                )
            )


def check_paths(plan: Plan) -> None:
    """Raise UserError, naming the setting, for a file or folder that is not there or cannot be what it is for, and for
    an output that cannot be written.

    No part of a Plan's own checks: a job's may come while others are trained.
    """
    check_model(plan.model, plan.model_config)
    for setting, files in (("from", [plan.from_]), ("embedding", plan.embedding)):
        for file in filter(None, files):
            check_file(setting, file)
    check_folder("folder", plan.images.folder)
    check_output("output", plan.output, f"textual_inversion/{plan.name}")


def facts_of(plan: Plan) -> dict[str, Any]:
    """All that decides a plan's result, of the kinds JSON knows: what tells whether a job has been done."""
    facts = asdict(plan)
    for name in ("output", "plot", "device", "preset", "preview"):
        del facts[name]
    for name in ("save_every", "keep", "gradient_checkpointing"):
        del facts["train"][name]
    # Jobs that were done before there were these settings are done.
    for name in ("resume", "evaluate_every", "held_out", "early_stop", "patience", "optimizer"):
        if facts["train"][name] == getattr(TrainSettings, name):
            del facts["train"][name]
    return json.loads(json.dumps(facts, default=str))  # paths are texts, tuples lists
