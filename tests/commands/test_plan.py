"""What a training is to do, and what of it decides its result."""

from dataclasses import replace
from pathlib import Path

import pytest

from textinv_core.commands.output import flag as name_of_flag
from textinv_core.commands.paths import CONFIGURATIONS
from textinv_core.commands.plan import Plan, check_paths, facts_of
from textinv_core.errors import SettingError
from textinv_core.image_settings import ImageSettings
from textinv_core.shuffle import ShuffleConfig
from textinv_core.training.preview import Preview
from textinv_core.training.settings import TrainSettings

PLAN = Plan(Path("m.safetensors"), ImageSettings(Path("cats")), TrainSettings(("a [name]",)), name="cat")


def test_what_decides_a_job_is_everything_but_places():
    elsewhere = replace(PLAN, output=Path("a"), plot=True, device="cpu", preset="subject", preview=Preview(5))
    assert facts_of(elsewhere) == facts_of(PLAN)
    assert facts_of(PLAN)["images"]["folder"] == "cats"
    assert facts_of(replace(PLAN, vectors=3)) != facts_of(PLAN)
    assert facts_of(replace(PLAN, shuffle=ShuffleConfig("all"))) != facts_of(PLAN)
    files = (Path("a.pt"), Path("b.pt"))
    assert facts_of(replace(PLAN, embedding=files))["embedding"] == ["a.pt", "b.pt"]


def test_how_often_it_is_saved_decides_nothing():
    often = replace(PLAN.train, save_every=1, keep=2, gradient_checkpointing="on")
    assert facts_of(replace(PLAN, train=often)) == facts_of(PLAN)


def test_jobs_of_before_there_were_these_settings_are_done_unless_one_is_set():
    earlier = {"template", "steps", "learning_rate", "batch_size", "gradient_accumulation", "seed", "gradient_clipping"}
    earlier |= {"clip_at", "min_timestep", "max_timestep", "loss_weighting"}
    assert {*facts_of(PLAN)["train"]} == earlier
    changes = (
        {"held_out": 1},
        {"resume": "fresh"},
        {"evaluate_every": 5},
        {"early_stop": "dvar"},
        {"optimizer": "sphere"},
    )
    for changed in changes:
        assert facts_of(replace(PLAN, train=replace(PLAN.train, **changed))) != facts_of(PLAN)


def test_paths_that_lead_nowhere_are_named_with_their_flags(tmp_path):
    file = tmp_path / "file.safetensors"
    file.write_bytes(b"x")
    for name in CONFIGURATIONS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    pictures = ImageSettings(tmp_path)
    there = replace(PLAN, model=file, images=pictures, model_config=tmp_path, from_=file, output=tmp_path / "a" / "b")
    check_paths(there)
    nowhere = tmp_path / "nowhere"
    for flag, changed in (
        ("--model", {"model": nowhere}),
        ("--model-config", {"model_config": nowhere}),
        ("--from", {"from_": nowhere}),
        ("--embedding", {"embedding": (file, nowhere)}),
    ):
        with pytest.raises(SettingError) as error:
            check_paths(replace(there, **changed))
        assert f"{flag} is '{nowhere}'" in error.value.sentence(name_of_flag)
    with pytest.raises(SettingError, match=r"folder is .*file"):
        check_paths(replace(there, images=ImageSettings(file)))
    with pytest.raises(SettingError, match=r"output is .*'.*file.safetensors' is a file"):
        check_paths(replace(there, output=file / "a"))
