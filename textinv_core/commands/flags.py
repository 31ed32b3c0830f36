"""The flags of `textinv train`, made from the settings' own dataclasses, where names, defaults and help are written."""

import re
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Group, Parameter
from typing_extensions import TypedDict  # Python's own does not say before 3.11 which keys may be absent

from ..described import description
from .output import flag, number, whole_number
from .settings_file import KINDS, TABLES, flag_of

PANELS = {
    "": Group("What to learn", sort_key=1),
    "images": Group("Pictures: the table images of a settings file", sort_key=2),
    "train": Group("Training: the table train of a settings file", sort_key=3),
    "shuffle": Group("Shuffling of vectors: the table shuffle of a settings file", sort_key=4),
    "preview": Group("Previews, made if one of these is given: the table preview of a settings file", sort_key=5),
}


# Settings whose names cannot be words of a sentence: in help they are called as they are typed.
SETTINGS = re.compile(rf"\b({'|'.join(key for keys in KINDS.values() for key in keys if '_' in key)})\b")


def _help(text: str, default: Any) -> str:
    """What is said of a setting, and its default, where that says something."""
    text = SETTINGS.sub(lambda setting: flag(setting[0]), text)
    if default is MISSING:
        return f"{text} Required, here or in the settings file."
    if default in (None, ()) or not str(default).strip() or isinstance(default, bool):
        return text + (" On unless switched off." if default is True else "")
    return f"{text} Default: {', '.join(default) if isinstance(default, tuple) else default}"


def flags_of(table: str) -> dict[str, Any]:
    """A table's keys, each with its kind and what cyclopts makes its flag of."""
    cls = TABLES[table]
    settings = {setting.name.rstrip("_"): setting for setting in fields(cls)}
    return {
        key: Annotated[
            kind,
            Parameter(
                name=flag_of(table, key),
                help=_help(description(cls, settings[key].name), settings[key].default),
                group=PANELS[table],
                allow_leading_hyphen=str in (kind, *get_args(kind)),  # a text may be any text
                converter={int: whole_number, float: number}.get(kind),
            ),
        ]
        for key, kind in KINDS[table].items()
    }


def _given(name: str, flags: dict[str, Any]) -> Any:
    """What a command gets of these flags: a dictionary of those that were there."""
    return Annotated[TypedDict(name, flags, total=False), Parameter(name="*")]  # type: ignore[misc]  # made, not written


# The flags that were given, laid out as a settings file is.
if TYPE_CHECKING:
    Flags = dict[str, Any]
else:
    Flags = _given("Flags", {**flags_of(""), **{table: _given(table, flags_of(table)) for table in TABLES if table}})
