"""One text for flags and tooltips."""

from dataclasses import dataclass, fields
from typing import Annotated

import pytest
from typing_extensions import Doc

from textinv_core.described import description
from textinv_core.image_settings import ImageSettings
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.settings import TrainSettings


@dataclass
class Sample:
    width: Annotated[int, "pixels", Doc("How wide.")] = 3
    height: Annotated[int, "pixels"] = 3
    depth: int = 3


def test_it_is_what_stands_beside_the_type():
    assert description(Sample, "width") == "How wide."


@pytest.mark.parametrize("name", ["height", "depth"])
def test_what_nothing_is_said_of_has_no_description(name):
    with pytest.raises(ValueError):
        description(Sample, name)
    with pytest.raises(KeyError):
        description(Sample, "length")


@pytest.mark.parametrize("cls", [ImageSettings, TrainSettings, ShuffleConfig])
def test_every_setting_is_described_by_plain_sentences(cls):
    for field in fields(cls):
        text = description(cls, field.name)
        assert text.endswith(".") and " " in text
        assert "`" not in text, "shown as it is in a tooltip"
