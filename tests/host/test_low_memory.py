"""Training where ComfyUI is started for little memory, on the device of `tests/simgpu.py`.

There it shows where things are, not how much room they take.
"""

import pytest

from tests.rig import PACK

# Model, text encoder and VAE: the share of each that is on the device while it is trained on; and of the VAE, while it
# encodes.
PLACES = {
    "plenty": ((1, 1, 0), 1),
    "lowvram": ((1, 0, 0), 1),
    "lowvram, little": ((pytest.approx(0.5, abs=0.2), 0, 0), 1),
    "novram": ((0, 0, 0), 0),  # each weight comes when it is used
    "cpu_vae": ((1, 1, 0), 0),
    "dynamic": ((1, 1, 0), 1),
}


@pytest.fixture(scope="module")
def trained(inside):
    return inside("low_memory.py", PACK / "textinv_core" / "toyworld")


@pytest.mark.parametrize("way", PLACES)
def test_it_learns_what_it_learns_with_plenty_of_memory(trained, way):
    assert trained[way]["finite"] and trained[way]["moved"]
    assert trained[way]["losses"] == trained["cpu"]["losses"]
    assert trained[way]["latent"] == trained["cpu"]["latent"]


@pytest.mark.parametrize("way", PLACES)
def test_each_model_is_on_the_device_for_its_time_only(trained, way):
    training, encoding = PLACES[way]
    where = trained[way]["where"]
    assert tuple(where["training"].values()) == training
    assert where["encoding"]["vae"] == where["decoding"] == encoding


@pytest.mark.parametrize("way", PLACES)
def test_the_host_is_as_it_was(trained, way):
    assert trained[way]["as it was"]
    assert set(trained[way]["where"]["unloaded"].values()) == {0}
    assert trained[way]["decoded"] == [1, 64, 64, 3]
