"""Settings files: TOML with one table for each group of settings, and jobs that add to what is common."""

import difflib
import re
import reprlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import UserError
from ..image_settings import ImageSettings
from ..prompts import template_lines
from ..shuffle import ShuffleConfig
from ..training.presets import PRESETS
from ..training.settings import TrainSettings
from .plan import Plan

MAX_FILE_BYTES = 1024 * 1024
# A key of many parts takes its reader time and memory by their square, 50,000 of them 9 GB. What stands in texts and
# comments is not meant; one that nothing closes goes to the end.
TEXTS = re.compile(
    r'''"""(?:[^"\\]|\\.|"(?!""))*(?:"""|\Z)|"(?:[^"\\\n]|\\[^\n])*"?|#[^\n]*'''
    r"""|'''.*?(?:'''|\Z)|'[^'\n]*'?""",
    re.DOTALL,
)
MANY_PARTS = re.compile(r"(?<![\w'-])(?:[\w-]+|'')(?:[ \t]*\.[ \t]*(?:[\w-]+|'')){32}", re.ASCII)

# What a file's tables become; "" is its top.
TABLES: dict[str, Any] = {"": Plan, "images": ImageSettings, "train": TrainSettings, "shuffle": ShuffleConfig}
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
    try:
        text = data.decode("utf-8-sig")  # Windows' editors write a byte order mark
        if MANY_PARTS.search(TEXTS.sub("''", text)):
            raise ValueError("it has a key of more than 32 parts, and no setting has more than two")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError; an integer may be too long
        raise UserError(f"{path.name!r} cannot be read as TOML: {error}.") from None


def plans(tables: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[list[Plan], bool]:
    """The trainings that a settings file and flags ask for, and whether they are a job list, `[[job]]`.

    tables: the file's. flags: laid out like them; what they say wins, and over each job too.

    Raises UserError for keys that mean nothing, naming the nearest that do, values of the wrong kind or out of range,
    and whatever is missing.
    """
    jobs = tables.get("job", [])
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise UserError("Jobs are tables of their own: begin each with [[job]], in two pairs of brackets.")
    common = _checked({key: value for key, value in tables.items() if key != "job"})
    if not jobs:
        return [_plan(_merged(common, flags))], False
    return [_plan(_merged(_merged(common, _checked(job)), flags)) for job in jobs], True


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two settings, of which `above` wins, table by table."""
    tables = {key: {**below.get(key, {}), **above.get(key, {})} for key in TABLES if key in below or key in above}
    return {**below, **above, **tables}


def _checked(tables: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says, every key known and every value of its kind."""
    from msgspec import ValidationError, convert

    checked: dict[str, Any] = {}
    for table, key, value in _flat(tables):
        if key not in KINDS[table]:
            raise UserError(_unknown(table, key))
        within = checked.setdefault(table, {}) if table else checked
        try:
            within[key] = convert(_in_full(table, key, value), KINDS[table][key], dec_hook=lambda kind, x: kind(x))
        except ValidationError:
            wanted = IN_WORDS.get(KINDS[table][key], "a text or a list of texts")
            # Shortened, because a table in tables in tables ... has a repr without end.
            value = reprlib.repr(value)
            raise UserError(f"The settings file says {_place(table, key)} is {value}; it must be {wanted}.") from None
    return checked


def _flat(tables: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for key, value in tables.items():
        if key == "images" and isinstance(value, str):
            yield "images", "folder", value
        elif not key or key not in TABLES:
            yield "", key, value
        elif isinstance(value, dict):
            yield from ((key, inner, each) for inner, each in value.items())
        else:
            raise UserError(f"{key!r} is a table: write [{key}], and its settings on the lines below.")


def _in_full(table: str, key: str, value: Any) -> Any:
    """What a file may say more shortly: one text of many without brackets, a single rate as a number."""
    if (table, key) == ("train", "learning_rate") and type(value) in (int, float):
        return str(value)
    return [value] if isinstance(value, str) and get_origin(KINDS[table][key]) is tuple else value


def _place(table: str, key: str) -> str:
    return f"{key!r} in [{table}]" if table else f"{key!r}"


def _unknown(table: str, key: str) -> str:
    """What to say of a key that means nothing: the same key elsewhere, or one that looks alike, here if possible."""
    elsewhere = [other for other, keys in KINDS.items() if key in keys]
    everywhere = {each: other for other, keys in KINDS.items() for each in keys}
    everywhere |= dict.fromkeys([*filter(None, TABLES), "job"], "")
    if elsewhere:
        advice = f"It belongs into [{elsewhere[0]}]." if elsewhere[0] else "It belongs to the top, before all tables."
    elif near := difflib.get_close_matches(key, KINDS[table], 1):
        advice = f"Did you mean {near[0]!r}?"
    elif near := difflib.get_close_matches(key, everywhere, 1):
        advice = f"Did you mean {_place(everywhere[near[0]], near[0])}?"
    else:
        advice = f"There are {', '.join(KINDS[table])}."
    return f"The settings file says {_place(table, key)}, which means nothing. {advice}"


def _plan(settings: dict[str, Any]) -> Plan:
    """Settings laid out as in a file -> a plan, with the template's lines in its TrainSettings."""
    preset = settings.get("preset", "")
    if preset and preset not in PRESETS:
        raise UserError(f"There is no preset {preset!r}; there are {' and '.join(PRESETS)}.")
    settings = _merged(_checked(PRESETS.get(preset, {})), settings)
    images, train, shuffle = (settings.pop(table, {}) for table in ("images", "train", "shuffle"))
    for given, flag, what in (
        (settings.get("model"), "model", "model to learn on"),
        (images.get("folder"), "images", "folder of pictures"),
    ):
        if not given:
            raise UserError(f"There is no {what}. Give one with --{flag}, or `{flag}` in the settings file.")
    settings["from_"] = settings.pop("from", None)
    template = settings.pop("template", None) or Plan.template
    return Plan(
        **settings,
        template=template,
        images=ImageSettings(**images),
        train=TrainSettings(template=_lines(template), **train),
        shuffle=ShuffleConfig(**shuffle),
    )


def _lines(template: tuple[str, ...]) -> tuple[str, ...]:
    """The prompts that a template's name, or lines of one's own, stand for."""
    [first, *more] = template
    return template_lines("custom", "\n".join(template)) if more or "[name]" in first else template_lines(first)
