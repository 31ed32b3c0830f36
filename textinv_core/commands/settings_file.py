"""Settings files: TOML with one table for each group of settings, and jobs that add to what is common."""

import re
import reprlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import SettingError, UserError, check_choice, did_you_mean
from ..image_settings import ImageSettings
from ..prompts import TEMPLATES, template_lines
from ..shuffle import ShuffleConfig
from ..training.presets import PRESETS
from ..training.preview import Preview
from ..training.settings import TrainSettings
from .output import flag, without_comma
from .plan import Plan

MAX_FILE_BYTES = 1024 * 1024
DECIMAL_COMMA = re.compile(r"^[^#\"'\n]*=[ \t]*(\d+,\d+)[ \t]*(?:#.*)?$", re.MULTILINE)
# A key of many parts takes its reader time and memory by their square, 50,000 of them 9 GB. What stands in texts and
# comments is not meant; one that nothing closes goes to the end, and before three quotes that close it may be two more.
TEXTS = re.compile(
    r'''"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5}|\Z)|"(?:[^"\\\n]|\\[^\n])*"?|#[^\n]*'''
    r"""|'''.*?(?:'{3,5}|\Z)|'[^'\n]*'?""",
    re.DOTALL,
)
MANY_PARTS = re.compile(r"(?<![\w'-])(?:[\w-]+|'')(?:[ \t]*\.[ \t]*(?:[\w-]+|'')){32}", re.ASCII)
# Of more than 4300 Python makes no text, for no message either, but it reads them where they are no decimals.
MANY_DIGITS = re.compile(r"\b(?:0[xob]\w|\d)\w{99}", re.ASCII)

# What a file's tables become; "" is its top.
TABLES: dict[str, Any] = {
    "": Plan,
    "images": ImageSettings,
    "train": TrainSettings,
    "shuffle": ShuffleConfig,
    "preview": Preview,
}
PREVIEW = "preview_"  # what its settings are called by flags and in messages, as other tables have some of these too
IN_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


def _kind(hint: Any) -> Any:
    """What a field's value is in a file, and behind a flag: the first of several kinds; a text where texts are listed,
    because the dataclass says best which there are."""
    return str if get_origin(hint) is Literal else get_args(hint)[0] if isinstance(hint, UnionType) else hint


def _kinds(cls: type) -> dict[str, Any]:
    """Key -> the kind of its value."""
    # The top has the tables, which are no keys, and the template: TrainSettings gets its lines.
    names = {each.name for each in fields(cls)} - TABLES.keys() - ({"template"} if cls is TrainSettings else set())
    # `from` is `from_` in Python.
    return {name.rstrip("_"): _kind(hint) for name, hint in get_type_hints(cls).items() if name in names}


KINDS = {table: _kinds(cls) for table, cls in TABLES.items()}


def flag_of(table: str, key: str) -> str:
    """The flag behind which the command takes a key of a table."""
    return flag(PREVIEW + key if table == "preview" else key)


def read_file(path: Path) -> dict[str, Any]:
    """A settings file's tables. Raises UserError where there is none, for more than 1 MiB and for what is no TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)  # a device has no size, and a pipe none yet
    except OSError as error:
        raise UserError(f"The settings file {str(path)!r} cannot be read: {error.strerror or error}.") from None
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{path.name!r} has more than 1 MiB, which no settings need. Is it the right file?")
    text = ""
    try:
        text = data.decode("utf-8-sig")  # Windows' editors write a byte order mark
        bare = TEXTS.sub("''", text)
        if MANY_PARTS.search(bare):
            raise ValueError("it has a key of more than 32 parts, and no setting has more than two")
        if MANY_DIGITS.search(bare):
            raise ValueError("it has a number of more than 99 digits")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; an integer may be too long
        comma = DECIMAL_COMMA.search(text)
        hint = without_comma(comma[1]) if comma else ""
        raise UserError(f"{path.name!r} cannot be read as TOML: {error}.{hint}") from None


def plans(tables: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[list[Plan], bool]:
    """The trainings that a settings file and flags ask for, and whether they are a job list, `[[job]]`.

    tables: the file's. flags: laid out like them; what they say wins, and over each job too.

    Raises UserError for keys that mean nothing, naming the nearest that do, values of the wrong kind or out of range,
    and whatever is missing; for jobs also where they share a name, or not the output folder. A job's own message begins
    with which it is.
    """
    jobs = tables.get("job", [])
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise UserError("Jobs are tables of their own: begin each with [[job]], in two pairs of brackets.")
    common = _checked({key: value for key, value in tables.items() if key != "job"})
    if not jobs:
        return [_plan(_merged(common, flags))], False
    todo = [_job(number, common, job, flags) for number, job in enumerate(jobs, 1)]
    if unnamed := [number for number, plan in enumerate(todo, 1) if not plan.name]:
        raise UserError(f"Job {unnamed[0]} has no name; each needs one of its own.")
    # Some file systems do not tell `Cat` from `cat`.
    if again := [name for name, times in Counter(plan.name.lower() for plan in todo).items() if times > 1]:
        raise UserError(f"Several jobs are called {again[0]!r}. Give each a name of its own; it is its folder's too.")
    if len(outputs := {plan.output for plan in todo}) > 1:
        raise UserError(f"All jobs share one output folder; these have {', '.join(sorted(map(str, outputs)))}.")
    return todo, True


def _job(number: int, common: Mapping[str, Any], job: Mapping[str, Any], flags: Mapping[str, Any]) -> Plan:
    try:
        return _plan(_merged(_merged(common, _checked(job)), flags))
    except UserError as error:
        raise of_job(f"{number} ({job['name']!r})" if "name" in job else f"{number}", error) from None


def of_job(which: str, error: UserError) -> SettingError:
    """`error`, saying which job it is about."""
    sentence = error.sentence if isinstance(error, SettingError) else lambda _: str(error)
    return SettingError(lambda name: f"Job {which}: {sentence(name)}")


def called(setting: str, tables: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    """What to call a setting in messages: by its key where only the file, `tables`, has it, else by its flag."""
    key = setting.rstrip("_").removeprefix(PREVIEW)
    home = "preview" if setting.startswith(PREVIEW) else next(table for table, keys in KINDS.items() if key in keys)

    def has_it(given: Mapping[str, Any]) -> bool:
        within = given.get(home, {}) if home else given
        return isinstance(within, str) or key in within  # `images = "cats"` is a text

    by_flag = has_it(flags)
    in_file = has_it(tables) or any(map(has_it, tables.get("job", [])))
    return flag_of(home, key) if by_flag or not in_file else f"{key} in [{home}]" if home else key


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two settings, of which `above` wins, table by table."""
    tables = {key: {**below.get(key, {}), **above.get(key, {})} for key in TABLES if key in below or key in above}
    return {**below, **above, **tables}


def _checked(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, every key known and every value of its kind."""
    from msgspec import ValidationError, convert

    checked: dict[str, Any] = {table: {} for table in tables if table and table in TABLES}
    for table, key, value in _flat(tables):
        if key not in KINDS[table]:
            raise UserError(_unknown(table, key))
        within = checked[table] if table else checked
        try:
            within[key] = convert(_in_full(table, key, value), KINDS[table][key], dec_hook=lambda kind, x: kind(x))
        except ValidationError:
            wanted = IN_WORDS.get(KINDS[table][key], "a text or a list of texts")
            hint = without_comma(value) if isinstance(value, str) and KINDS[table][key] in (int, float) else ""
            # Shortened, because a table in tables in tables ... has a repr without end.
            value = reprlib.repr(value)
            wanted = f"it must be {wanted}.{hint}"
            raise UserError(f"The settings file says {_place(table, key)} is {value}; {wanted}") from None
    return checked


def _flat(tables: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for key, value in tables.items():
        if key == "images" and isinstance(value, str):
            yield "images", "folder", value
        elif not key or key not in TABLES:
            if isinstance(value, dict) and key not in KINDS[""]:
                raise UserError(_unknown_table(key))
            yield "", key, value
        elif isinstance(value, dict):
            yield from ((key, inner, each) for inner, each in value.items())
        else:
            raise UserError(
                f"The settings file says {key!r} is {reprlib.repr(value)}, but {key!r} is a table: write "
                f"[{key}], and its settings, such as {next(iter(KINDS[key]))}, on the lines below."
            )


def _in_full(table: str, key: str, value: Any) -> Any:
    """What a file may say more shortly: one text of many without brackets, a single rate as a number."""
    if (table, key) == ("train", "learning_rate") and type(value) in (int, float):
        return str(value)
    return [value] if isinstance(value, str) and get_origin(KINDS[table][key]) is tuple else value


def _place(table: str, key: str) -> str:
    return f"{key!r} in [{table}]" if table else f"{key!r}"


def _unknown_table(table: str) -> str:
    known = [*filter(None, TABLES), "job"]
    tables = ", ".join(f"[{each}]" for each in known[:-1])
    return (
        f"The settings file has a table [{table}], which means nothing. There are {tables} and [[job]]."
        f"{did_you_mean(table, known)}"
    )


def _unknown(table: str, key: str) -> str:
    """What to say of a key that means nothing: the one that a flag of this name is for, the same key elsewhere, or one
    that looks alike, here if possible."""
    everywhere = [(other, each) for other, keys in KINDS.items() for each in keys]
    keys = {each: (other, each) for other, each in reversed(everywhere)}  # the first table that has it
    flags = {flag_of(*place).lstrip("-").replace("-", "_"): place for place in everywhere}
    other, meant = (keys | flags).get(key.replace("-", "_"), ("", ""))
    if meant and other == table:
        advice = f"Did you mean {meant!r}?"
    elif meant:
        advice = f"It belongs into [{other}]" if other else "It belongs to the top, before all tables"
        advice += f", as {meant!r}." if meant != key else "."
    elif guess := did_you_mean(key, KINDS[table]):
        advice = guess.strip()
    elif near := get_close_matches(key, keys, 1):
        advice = f"Did you mean {_place(*keys[near[0]])}?"
    elif not table and (guess := did_you_mean(key, filter(None, TABLES))):
        advice = guess.strip()
    else:
        advice = f"There are {', '.join(KINDS[table])}."
    return f"The settings file says {_place(table, key)}, which means nothing. {advice}"


def _plan(settings: dict[str, Any]) -> Plan:
    """Settings laid out as in a file -> a plan, with the template's lines in its TrainSettings."""
    if preset := settings.get("preset", ""):
        check_choice("preset", preset, PRESETS)
    settings = _merged(_checked(PRESETS.get(preset, {})), settings)
    images, train, shuffle = (settings.pop(table, {}) for table in ("images", "train", "shuffle"))
    preview = settings.pop("preview", None)
    if not settings.get("model"):
        raise _missing("model", "model to learn on")
    if not images.get("folder"):
        raise _missing("images", "folder of pictures")
    settings["from_"] = settings.pop("from", None)
    template = settings.pop("template", Plan.template)
    return Plan(
        **settings,
        template=template,
        images=ImageSettings(**images),
        train=TrainSettings(template=_lines(template), **train),
        shuffle=ShuffleConfig(**shuffle),
        preview=None if preview is None else Preview(**preview),
    )


def _missing(key: str, what: str) -> UserError:
    return UserError(f"There is no {what}. Give one with --{key}, or as `{key}` in a settings file.")


def _lines(template: tuple[str, ...]) -> tuple[str, ...]:
    """The prompts that a template's name, or lines of one's own, stand for."""
    if not template:
        raise SettingError(lambda name: f"{name('template')} is empty. Leave it out, or give it a line.")
    first, *more = template
    if more or "[name]" in first:
        return template_lines("custom", "\n".join(template))
    if first not in TEMPLATES:
        guess = did_you_mean(first, TEMPLATES)
        raise SettingError(
            lambda name: (
                f"{name('template')} cannot be {first!r}; there are {', '.join(TEMPLATES)}, and lines of your own, "
                f"with [name].{guess}"
            )
        )
    return template_lines(first)
