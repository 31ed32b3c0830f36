"""What is said to the person: in whose words, and with which guess."""

import pytest

from textinv_core.errors import SettingError, UserError, check_choice, did_you_mean


def test_a_setting_is_called_as_in_the_core_unless_told_otherwise():
    error = SettingError(lambda name: f"{name('min_timestep')} is 5, {name('max_timestep')} 4")
    assert str(error) == "min_timestep is 5, max_timestep 4" and isinstance(error, UserError)
    assert error.sentence(lambda setting: f"--{setting}") == "--min_timestep is 5, --max_timestep 4"


def test_a_choice_is_refused_with_all_there_are_and_the_nearest():
    check_choice("resize", "crop", ("crop", "keep"))
    with pytest.raises(SettingError, match=r"resize cannot be 'corp'; there are crop, keep\. Did you mean 'crop'\?"):
        check_choice("resize", "corp", ("crop", "keep"))
    with pytest.raises(SettingError, match=r"cannot be 7; there are crop, keep\.$"):
        check_choice("resize", 7, ("crop", "keep"))


def test_the_same_word_is_no_guess():
    assert did_you_mean("crop", ["crop", "keep"]) == ""
    assert did_you_mean("corp", ["crop", "keep"]) == " Did you mean 'crop'?"
