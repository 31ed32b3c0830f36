"""What a training is told, by a settings file, by flags, or by both: `[train]` is the node's own TrainSettings."""

import difflib
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..schedule import LearningRateSchedule
from ..shuffle import ShuffleConfig
from ..training.presets import PRESETS
from ..training.settings import TrainSettings
from .options import Setting, settings_of

MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Pictures:
    """Which pictures are learnt from, and how they are made ready for it."""

    folder: Path
    """The folder with the pictures: 5 to 20 of one thing, or in one style."""

    recursive: bool = False
    """Also take the pictures of all folders inside the folder."""

    captions: str = "auto"
    """Where each picture's [filewords] come from: `sidecar`, the .txt beside it; `filename`, the words of its name;
    `auto`, the first of these there is; `none`."""

    filename_word_regex: str = ""
    """A regular expression that finds the words in a file name, such as `[a-z]+`. Without one the name is taken as it
    is, less digits and dashes at its start."""

    filename_join_string: str = " "
    """What is put between the words it finds."""

    width: int = 512
    """Pixels. What the model was made for learns best: 512 for SD1.x, 768 for most SD2.x, 1024 for SDXL; half of it
    takes a quarter of the time and loses detail."""

    height: int = 512
    """Pixels, as width."""

    resize: str = "crop"
    """How a picture gets that size: `crop` cuts what sticks out at both ends, `squash` changes its proportions, `keep`
    leaves it as it is."""

    flip: bool = False
    """Follow each picture by its mirror image. Not for writing, or faces that should stay theirs."""

    mask_loss: bool = True
    """Learn only where a picture is opaque; all of it where nothing is transparent."""

    def __post_init__(self):
        from ..images.load import CAPTIONS
        from ..images.resize import RESIZE_MODES
        from ..prompts import filename_words

        for name, value, known in (("captions", self.captions, CAPTIONS), ("resize", self.resize, RESIZE_MODES)):
            if value not in known:
                raise ValueError(f"There is no --{name} {value!r}; there are {', '.join(known)}.")
        try:
            filename_words("", self.filename_word_regex)
        except ValueError as error:
            raise ValueError(f"The --filename-word-regex cannot be used. {error}") from None
        if self.width < 1 or self.height < 1:
            raise ValueError(f"Pictures cannot be made {self.width}x{self.height} pixels: use 64 or more for each.")


@dataclass(frozen=True)
class Plan:
    """One training, from a model file to an embedding file.

    images, train, shuffle: the tables of a settings file. name: "" for that of the embedding to go on from.
    """

    model: Path
    """The model to learn on: a single file (.safetensors), or a folder in diffusers' layout. SD1.x, SD2.x or SDXL."""

    images: Pictures
    train: TrainSettings
    shuffle: ShuffleConfig = field(default_factory=ShuffleConfig)

    preset: str = ""
    """Settings to start from, `subject` or `style`: nothing learnt better where it was measured. What you set yourself
    wins."""

    name: str = ""
    """What prompts will call the embedding: embedding:NAME. Letters, digits, _ and - only. With --from it can stay as
    it is there."""

    init_text: str = "*"
    """The words it starts as. One for the kind of thing in your pictures, such as dog or watercolor, gives training a
    head start; empty starts from zeros."""

    vectors: int = PRESETS["subject"]["vectors"]
    """How many tokens of a prompt it takes up, 0 to 75. More hold more detail, need more pictures, and leave other
    words less say. 0 makes as many as the init text has tokens."""

    template: tuple[str, ...] = ("subject",)
    """The training prompts, of which each picture gets one at random: `subject` or `style`; `subject_filewords` or
    `style_filewords`, which add the picture's caption; `none`, the caption alone; or lines of your own with [name], and
    [filewords] if you like, each with a flag of its own."""

    from_: Path | None = None
    """An embedding file to train further, instead of a new one. Its steps count, so set more steps than it has."""

    embedding: tuple[Path, ...] = ()
    """The file of another embedding, which prompts may name as embedding:NAME after the file; it is not trained. Can
    come several times."""

    model_config: Path | None = None
    """For a single file of unusual shape: a folder with its configurations and tokenizer in diffusers' layout."""

    device: str = "auto"
    """Where the model runs: `cpu`, `cuda`, `cuda:1`, `mps`, and so on. `auto` takes the fastest there is."""

    precision: str = "auto"
    """What the model computes in: `fp32`, `bf16` or `fp16`, which take half the memory. `auto` is bf16 on a CUDA GPU,
    else fp32. The embedding itself is always fp32."""

    output: Path = Path("output")
    """The folder for the embedding; each run's record goes to `textual_inversion/NAME` in it."""

    plot: bool = False
    """Also leave a picture of the losses, loss.png, in the run's folder."""

    def __post_init__(self):
        from ..embedding import check_name

        if not self.name and not self.from_:
            raise ValueError("The embedding has no name. Give one with --name, or `name` in the settings file.")
        if self.name:
            check_name(self.name)
        LearningRateSchedule(self.train.learning_rate, self.train.steps)  # says what is wrong before a model is loaded
        if not 0 <= self.vectors <= 75:
            raise ValueError(
                "An embedding can take up 1 to 75 tokens of a prompt, or with 0 as many as its init text has; "
                f"vectors is {self.vectors}."
            )
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"There is no precision {self.precision!r}; there are auto, fp32, bf16 and fp16.")
        if self.images.captions == "none" and any("[filewords]" in line for line in self.train.template):
            raise ValueError(
                "This template has [filewords], and captions are none. Choose another template, or captions auto."
            )


TABLES = {"images": Pictures, "train": TrainSettings, "shuffle": ShuffleConfig}
PANELS: dict[str, list[Setting]] = {
    "What to learn": settings_of(Plan, skip=tuple(TABLES)),
    "Pictures: the table images of a settings file": settings_of(Pictures, "images", {"folder": "--images"}),
    "Training: the table train of a settings file": settings_of(TrainSettings, "train", skip=("template",)),
    "Shuffling of vectors: the table shuffle of a settings file": settings_of(
        ShuffleConfig, "shuffle", {"mode": "--shuffle", "per": "--shuffle-per"}
    ),
}
SETTINGS = {(each.table, each.key): each for panel in PANELS.values() for each in panel}


def read_file(path: Path) -> dict[str, Any]:
    """A settings file's tables. Raises ValueError for more than 1 MiB and what is no TOML, OSError without a file."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path.name!r} has more than 1 MiB, which no settings need. Is it the right file?")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name!r} cannot be read as TOML: {error}.") from None


def plans(told: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[list[Plan], bool]:
    """The trainings that a settings file and flags ask for, and whether they are a job list, `[[job]]`.

    told: the file's tables. flags: laid out like one; what they say wins, and over each job too.

    Raises ValueError for keys that mean nothing, naming the nearest that do, values of the wrong kind or out of range,
    and whatever is missing.
    """
    jobs = told.get("job", [])
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise ValueError("Jobs are tables of their own: begin each with [[job]], in two pairs of brackets.")
    common = _checked({key: value for key, value in told.items() if key != "job"})
    if not jobs:
        return [_plan(_merged(common, flags))], False
    return [_plan(_merged(_merged(common, _checked(job)), flags)) for job in jobs], True


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two settings, of which `above` wins, table by table."""
    tables = {key: {**below.get(key, {}), **above.get(key, {})} for key in TABLES if key in below or key in above}
    return {**below, **above, **tables}


def _checked(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, every key known and every value of its kind."""
    checked: dict[str, Any] = {}
    for table, key, value in _flat(told):
        if (table, key) not in SETTINGS:
            raise ValueError(_unknown(table, key))
        within = checked.setdefault(table, {}) if table else checked
        within[key] = _value(SETTINGS[table, key], value)
    return checked


def _flat(told: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for key, value in told.items():
        if key == "images" and isinstance(value, str):
            yield "images", "folder", value
        elif key not in TABLES:
            yield "", key, value
        elif isinstance(value, dict):
            yield from ((key, inner, each) for inner, each in value.items())
        else:
            raise ValueError(f"{key!r} is a table: write [{key}], and its settings on the lines below.")


def _place(table: str, key: str) -> str:
    return f"{key!r} in [{table}]" if table else f"{key!r}"


def _unknown(table: str, key: str) -> str:
    """What to say of a key that means nothing: the same key elsewhere, or one that looks alike, here if possible."""
    here = [other for within, other in SETTINGS if within == table]
    elsewhere = [within for within, other in SETTINGS if other == key]
    if elsewhere:
        advice = f"It belongs into [{elsewhere[0]}]." if elsewhere[0] else "It belongs to the top, before all tables."
    elif near := difflib.get_close_matches(key, here, 1):
        advice = f"Did you mean {near[0]!r}?"
    elif near := difflib.get_close_matches(key, [*(other for _, other in SETTINGS), *TABLES, "job"], 1):
        within = next((within for within, other in SETTINGS if other == near[0]), "")
        advice = f"Did you mean {_place(within, near[0])}?"
    else:
        advice = f"There are {', '.join(here)}."
    return f"The settings file says {_place(table, key)}, which means nothing. {advice}"


def _value(setting: Setting, value: Any) -> Any:
    """`value`, as TOML gives it, as what the setting is. Raises ValueError for one of another kind."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if setting.kind is str and is_number and setting.key == "learning_rate":
        return str(value)  # the grammar's simplest sentence is a number
    if setting.kind == list[str]:
        lines = [value] if isinstance(value, str) else value
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            return lines
    elif setting.kind is float and is_number:
        return float(value)
    elif setting.kind is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is setting.kind:
        return value
    kinds = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    wanted = kinds.get(setting.kind, "a text or a list of texts")
    place = _place(setting.table, setting.key)
    # Shortened, because a table in tables in tables ... has a repr without end.
    raise ValueError(f"The settings file says {place} is {reprlib.repr(value)}; it must be {wanted}.")


def _plan(settings: dict[str, Any]) -> Plan:
    """Settings laid out as in a file -> a plan, with the template's lines in its TrainSettings."""
    preset = settings.get("preset", "")
    if preset and preset not in PRESETS:
        raise ValueError(f"There is no preset {preset!r}; there are {' and '.join(PRESETS)}.")
    settings = _merged(PRESETS.get(preset, {}), settings)
    for table, key, what in (("", "model", "model to learn on"), ("images", "folder", "folder of pictures")):
        if not (settings.get(table, {}) if table else settings).get(key):
            flag = SETTINGS[table, key].flag
            raise ValueError(f"There is no {what}. Give one with {flag}, or `{flag[2:]}` in the settings file.")
    top = {key: value for key, value in settings.items() if key not in TABLES}
    template = tuple(top.pop("template", None) or Plan.template)
    embeddings = tuple(map(Path, top.pop("embedding", ())))
    return Plan(
        **{"from_" if key == "from" else key: value for key, value in top.items()},
        template=template,
        embedding=embeddings,
        images=Pictures(**settings["images"]),
        train=TrainSettings(template=_lines(template), **settings.get("train", {})),
        shuffle=ShuffleConfig(**settings.get("shuffle", {})),
    )


def _lines(template: tuple[str, ...]) -> tuple[str, ...]:
    """The prompts that a template's name, or lines of one's own, stand for."""
    from ..prompts import template_lines

    [first, *more] = template
    return template_lines("custom", "\n".join(template)) if more or "[name]" in first else template_lines(first)


def check_paths(plan: Plan) -> None:
    """Raise ValueError, naming the flag, for a file or folder that is not there.

    No part of a Plan's own checks: a job's may come while others are trained.
    """
    for flag, path, what, is_there in (
        ("--model", plan.model, "file or folder", Path.exists),
        ("--model-config", plan.model_config, "folder", Path.is_dir),
        ("--from", plan.from_, "file", Path.is_file),
        *(("--embedding", path, "file", Path.is_file) for path in plan.embedding),
        ("--images", plan.images.folder, "folder", Path.is_dir),
    ):
        if path is not None and not is_there(path):
            raise ValueError(f"{flag} is {str(path)!r}, and there is no such {what}.")


def facts_of(plan: Plan) -> dict[str, Any]:
    """All that decides a plan's result, of the kinds JSON knows: what tells whether a job has been done."""
    facts = asdict(plan)
    for name in ("output", "plot", "device", "preset"):
        del facts[name]
    for name in ("save_every", "gradient_checkpointing"):
        del facts["train"][name]
    return _plain(facts)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
