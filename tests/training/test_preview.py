"""What a preview can be told."""

import pytest

from textinv_core.errors import SettingError
from textinv_core.training.preview import RANGES, Preview, check_preview


@pytest.mark.parametrize("setting", RANGES)
def test_numbers_out_of_range_are_refused_by_name(setting):
    least, most = RANGES[setting]
    for value in (least, most):
        Preview(**{setting: value})
    for value in (least - 1, most + 1, float("nan")):
        with pytest.raises(SettingError) as refused:
            Preview(**{setting: value})
        told = refused.value.sentence(lambda name: f"--{name}")
        assert told == f"--preview_{setting} cannot be {value}; it can be {least} to {most}."


@pytest.mark.parametrize(
    ("preview", "words"),
    [
        (Preview(sampler="eula"), "preview_sampler cannot be 'eula'; there are euler, ddim. Did you mean 'euler'?"),
        (Preview(scheduler="simple"), "preview_scheduler cannot be 'simple'; there are normal."),
        (Preview(width=72, height=64), "Previews of 72x64 pixels cannot be generated.*multiples of 16"),
        (Preview(height=8), "Previews of 0x8 pixels"),
    ],
)
def test_what_a_host_cannot_generate_is_refused(preview, words):
    with pytest.raises(SettingError, match=words):
        check_preview(preview, ["euler", "ddim"], ["normal"], 16)


def test_what_a_host_can_generate_is_not_refused():
    for preview in (Preview(), Preview(sampler="ddim", scheduler="normal", width=64, height=48)):
        check_preview(preview, ["euler", "ddim"], ["normal"], 16)
