"""Flags made from dataclasses."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("typer")

from textinv_core.commands.options import Setting, field_docs, settings_of
from textinv_core.commands.plan import SETTINGS, Pictures
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.settings import TrainSettings


@dataclass(frozen=True)
class Sample:
    """Something.

    told: in the docstring,
        over two lines.
    """

    told: Literal["a", "b"] = "a"
    from_: Path | None = None
    """Behind the field,

    with a break."""
    lines: tuple[str, ...] = ("x", "y")
    """Some."""
    more: tuple[Path, ...] = ()
    """None at first."""
    on: bool = True
    """A switch."""
    either: str | bool = "off"
    """One."""


def test_what_is_said_of_a_field_is_found_in_both_places():
    docs = field_docs(Sample)
    assert docs["told"] == "in the docstring, over two lines."
    assert docs["from_"] == "Behind the field, with a break."


def test_settings_have_the_fields_names_kinds_and_defaults():
    assert settings_of(Sample, "sample", {"told": "--say"}, skip=("on",)) == [
        Setting("sample", "told", "--say", str, "In the docstring, over two lines. Default: a"),
        Setting("sample", "from", "--from", Path, "Behind the field, with a break."),
        Setting("sample", "lines", "--lines", list[str], "Some. Default: x, y"),
        Setting("sample", "more", "--more", list[str], "None at first."),
        Setting("sample", "either", "--either", str, "One. Default: off"),
    ]


def test_every_setting_of_the_core_is_a_flag_with_help():
    cores = {"train": TrainSettings, "shuffle": ShuffleConfig, "images": Pictures}
    for table, cls in cores.items():
        keys = {field.name for field in fields(cls)} - {"template"}
        assert {key for within, key in SETTINGS if within == table} == keys
    assert all(len(setting.help) > 10 for setting in SETTINGS.values())


def test_no_two_settings_share_a_flag():
    flags = [setting.flag for setting in SETTINGS.values()]
    assert len(set(flags)) == len(flags)
