"""Flags made from the settings."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("cyclopts")

from textinv_core.commands import app
from textinv_core.commands.flags import flags_of
from textinv_core.commands.settings_file import KINDS, TABLES
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.preview import Preview
from textinv_core.training.settings import TrainSettings

PARAMETERS = {(table, key): get_args(hint)[1] for table in TABLES for key, hint in flags_of(table).items()}


def given(*typed):
    """What the command gets of these flags."""
    _, bound, _ = app.parse_args(["train", *typed], exit_on_error=False)
    return bound.arguments.get("flags")


def test_every_setting_of_the_core_is_a_flag_with_help():
    for table, cls in (("train", TrainSettings), ("shuffle", ShuffleConfig), ("preview", Preview)):
        keys = {field.name for field in fields(cls)} - {"template"}
        assert {key for within, key in PARAMETERS if within == table} == keys
    assert all(len(parameter.help) > 10 for parameter in PARAMETERS.values())


def test_no_two_settings_share_a_flag():
    names = [parameter.name for parameter in PARAMETERS.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("place", "default"),
    [
        (("train", "steps"), "Default: 500"),
        (("", "template"), "Default: subject"),
        (("images", "mask_loss"), "On unless switched off."),
        (("shuffle", "mode"), "off. Default: off"),
    ],
)
def test_help_says_the_default(place, default):
    assert PARAMETERS[place].help.endswith(default)


@pytest.mark.parametrize("place", [("", "model"), ("", "from"), ("", "name"), ("images", "flip")])
def test_help_says_no_default_that_says_nothing(place):
    assert "Default" not in PARAMETERS[place].help


def test_flags_that_were_not_given_are_absent():
    assert not given()
    assert given("--steps", "5") == {"train": {"steps": 5}}
    assert given("--no-flip") == {"images": {"flip": False}}


def test_flags_are_laid_out_as_a_file_is_and_of_their_kinds():
    typed = ["--from", "a.pt", "--template", "a", "--template", "-b", "--embedding", "x", "--embedding", "y"]
    typed += ["--images", "cats", "--flip", "--clip-at", "1", "--shuffle", "all", "--shuffle-per", "batch"]
    typed += ["--preview-seed", "7", "--preview-cfg", "4"]
    assert given(*typed, "--seed", "-1", "--filename-join-string", "-") == {
        "from": Path("a.pt"),
        "template": ("a", "-b"),
        "embedding": (Path("x"), Path("y")),
        "images": {"folder": Path("cats"), "flip": True, "filename_join_string": "-"},
        "train": {"clip_at": 1.0, "seed": -1},
        "shuffle": {"mode": "all", "per": "batch"},
        "preview": {"seed": 7, "cfg": 4.0},
    }


def test_of_a_flag_that_comes_twice_the_last_counts():
    """As what to type after an interrupt relies on."""
    twice = given("--from", "a.pt", "--steps", "5", "--flip", "--from", "b.pt", "--steps", "6", "--no-flip")
    assert twice == {"from": Path("b.pt"), "images": {"flip": False}, "train": {"steps": 6}}


def test_help_calls_settings_as_they_are_typed():
    texts = [parameter.help for table in TABLES for _, parameter in map(get_args, flags_of(table).values())]
    assert any("--gradient-accumulation 1" in text for text in texts)
    keys = [key for keys in KINDS.values() for key in keys if "_" in key]
    assert not [text for text in texts if re.search(rf"\b({'|'.join(keys)})\b", text)]
