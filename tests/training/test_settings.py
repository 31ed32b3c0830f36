import math

import pytest

from textinv_core.errors import SettingError
from textinv_core.training.settings import TrainSettings


@pytest.mark.parametrize(
    "bad",
    [
        {"template": ()},
        {"steps": 0},
        {"steps": 10**21},
        {"batch_size": 0},
        {"batch_size": 100_000},
        {"gradient_accumulation": 100_000},
        {"gradient_accumulation": 0},
        {"gradient_clipping": "on"},
        {"clip_at": 0.0},
        {"clip_at": math.nan},
        {"clip_at": math.inf},
        {"min_timestep": -1},
        {"min_timestep": 1000},
        {"max_timestep": 1001},
        {"loss_weighting": "snr"},
        {"gradient_checkpointing": "true"},
        {"save_every": -1},
        {"seed": -1},
        {"seed": 2**64},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(bad):
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=rf"{name} cannot be .*{value!r}".replace("()", r"\(\)")):
        TrainSettings(**{"template": ("[name]",), **bad})


def test_an_empty_range_of_timesteps_is_refused():
    with pytest.raises(SettingError, match="min_timestep cannot be 500 with max_timestep 500"):
        TrainSettings(("[name]",), min_timestep=500, max_timestep=500)


def test_settings_at_the_edges_are_taken():
    TrainSettings(
        ("[name]",),
        steps=1,
        gradient_clipping="value",
        clip_at=1e-9,
        min_timestep=999,
        max_timestep=1000,
        save_every=0,
        seed=2**64 - 1,
    )
