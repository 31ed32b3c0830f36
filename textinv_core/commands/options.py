"""Flags made from the settings' own dataclasses, so that names, defaults and help are written once."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer


@dataclass(frozen=True)
class Setting:
    """One setting, as a flag and as a key of a settings file.

    table, key: where it stands in the file; table "" is the top. kind: int, float, str, bool, Path or list[str].
    """

    table: str
    key: str
    flag: str
    kind: Any
    help: str

    @property
    def parameter(self) -> str:
        """What the command's function calls it."""
        return f"{self.table}__{self.key}"


def field_docs(cls: type) -> dict[str, str]:
    """Field -> what is said about it: in the string behind it, or as `field: ...` in the class's docstring."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    told = dict(re.findall(r"^(\w+): (.*(?:\n +.*)*)", inspect.cleandoc(cls.__doc__ or ""), re.MULTILINE))
    for before, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and isinstance(after, ast.Expr):
            assert isinstance(after.value, ast.Constant)
            told[before.target.id] = str(after.value.value)
    return {name: " ".join(text.split()) for name, text in told.items()}


def _kind(hint: Any) -> Any:
    if get_origin(hint) is tuple:
        return list[str]
    return next((kind for kind in (hint, *get_args(hint)) if kind in (int, float, bool, str, Path)), str)


def _help(text: str, field: Field) -> str:
    """What is said of a setting, and its default, where that says something."""
    default = field.default
    text = text[0].upper() + text[1:]
    if default in (MISSING, None, ()) or not str(default).strip() or isinstance(default, bool):
        return text + (" On unless switched off." if default is True else "")
    return f"{text} Default: {', '.join(default) if isinstance(default, tuple) else default}"


def settings_of(
    cls: type, table: str = "", flags: Mapping[str, str] = MappingProxyType({}), skip: tuple[str, ...] = ()
) -> list[Setting]:
    """The settings in a dataclass. flags: those that are not called after their field. skip: fields that are none."""
    hints, docs = get_type_hints(cls), field_docs(cls)
    made = []
    for field in fields(cls):
        if field.name not in skip:
            key = field.name.rstrip("_")  # `from_`, as `from` is Python's
            flag = flags.get(key, "--" + key.replace("_", "-"))
            made.append(Setting(table, key, flag, _kind(hints[field.name]), _help(docs[field.name], field)))
    return made


def with_flags(panels: Mapping[str, list[Setting]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in addition to its own parameters, a flag for each setting, in panels of its help.

    The command takes them as keywords (see `given`); a flag that was not given is None, so that files can decide.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters.values()
        made = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for panel, settings in panels.items():
            for each in settings:
                names = f"{each.flag}/--no-{each.flag[2:]}" if each.kind is bool else each.flag
                option = typer.Option(names, help=each.help, rich_help_panel=panel, show_default=False)
                made.append(
                    inspect.Parameter(
                        each.parameter,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=None,
                        annotation=Annotated[each.kind | None, option],
                    )
                )
        command.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]  # what typer reads
        return command

    return decorate


def given(panels: Mapping[str, list[Setting]], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given, laid out as a settings file is."""
    told: dict[str, Any] = {}
    for each in (setting for settings in panels.values() for setting in settings):
        value = flags[each.parameter]
        if value is not None and value != []:  # some versions of typer have [] for a list that was not given
            (told.setdefault(each.table, {}) if each.table else told)[each.key] = value
    return told
