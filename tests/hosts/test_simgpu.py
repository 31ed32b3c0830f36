"""The toy world trained on a device that is not the CPU; see `tests/simgpu.py`."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

pytest.importorskip("diffusers")

from tests import simgpu
from tests.fakes import train
from textinv_core import devices
from textinv_core.hosts import diffusers
from textinv_core.hosts.diffusers import load
from textinv_core.images import load_folder
from textinv_core.training import latents
from textinv_core.training.examples import encoded_examples
from textinv_core.training.settings import TrainSettings

WORLD = Path(__file__).parents[2] / "textinv_core" / "toyworld"
TEMPLATE = ("(a [name]:1.3) [filewords]", "[name] " + "small " * 50, "[name] and (no [filewords]:0.7)")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(autouse=True)
def encoded_here(monkeypatch):
    """No latents that earlier tests have kept: theirs came from another kind of attention."""
    monkeypatch.setattr(latents, "KEPT", latents.Latents())


def training(device: str, precision: str, **changed) -> tuple[list[float], list[simgpu.Waits]]:
    """The losses of four steps, and for each what was counted."""
    host = load(WORLD / "toyworld.safetensors", WORLD, device=device, dtype=PRECISIONS[precision])
    examples = encoded_examples(host, list(load_folder(WORLD, "pictures")))
    start = host.create_embedding("cat", "figure", 3)
    settings = TrainSettings(TEMPLATE, 4, "0.005", batch_size=2, seed=3, loss_weighting="min_snr", **changed)
    losses, counted = [], []
    with host.trainable(examples[0].latent, 2) as model:
        steps = train(model, examples, start, settings)
        for _ in range(4):
            with simgpu.counting() as waits:
                losses.append(next(steps).loss)
            counted.append(waits)
    return losses, counted


@pytest.mark.parametrize("precision", PRECISIONS)
def test_losses_are_those_of_the_cpu(precision):
    settings = {"gradient_accumulation": 2, "gradient_clipping": "norm", "gradient_checkpointing": "on"}
    with sdpa_kernel(SDPBackend.MATH):  # the attention there is for devices that torch does not know
        on_cpu, _ = training("cpu", precision, **settings)
    assert training("simgpu", precision, **settings)[0] == on_cpu


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_reads_once_from_the_device(precision, accumulation):
    _, [_, *counted] = training("simgpu", precision, gradient_accumulation=accumulation)
    for waits in counted:  # the first step fills caches
        assert len(waits.reads) == 1, str(waits)


def test_nothing_that_the_training_sends_is_waited_for(monkeypatch):
    monkeypatch.setattr(devices, "NON_BLOCKING", {"simgpu"})
    _, [_, *counted] = training("simgpu", "fp32", gradient_accumulation=2)
    for waits in counted:
        assert not waits.blocking_uploads, str(waits)


@sdpa_kernel(SDPBackend.MATH)
def test_an_embedding_that_is_known_stands_beside_the_one_in_training():
    losses = []
    for device in ("cpu", "simgpu"):
        host = load(WORLD / "toyworld.safetensors", WORLD, device=device)
        host = host.knowing([host.create_embedding("ink", "figure", 2)])
        example = encoded_examples(host, list(load_folder(WORLD, "pictures")))[0]
        start = host.create_embedding("cat", "figure", 3)
        with host.trainable(example.latent, 1) as model:
            steps = train(model, [example], start, TrainSettings(("[name] in embedding:ink",), 1))
            losses.append(next(steps).loss)
    assert losses[0] == losses[1]


def test_a_part_left_on_the_cpu_fails(monkeypatch):
    """What runs on the CPU by oversight fails here as it would on a GPU."""
    encode = diffusers._run

    def half_moved(*args):
        text, pooled = encode(*args)
        return text.cpu(), pooled

    monkeypatch.setattr(diffusers, "_run", half_moved)
    with pytest.raises(RuntimeError, match="same device"):
        training("simgpu", "fp32")


def test_the_vae_is_away_while_the_model_is_trained_on_and_back_whatever_ends_that():
    host = load(WORLD / "toyworld.safetensors", WORLD, device="simgpu")
    vae, latent = host.pipe.vae, torch.zeros(host.latent_shape(64, 64))

    def places():
        return {weight.device.type for weight in [*vae.parameters(), *vae.buffers()]}

    with host.trainable(latent, 1):
        assert places() == {"cpu"}
    assert places() == {"simgpu"}
    with pytest.raises(ZeroDivisionError), host.trainable(latent, 1):
        raise ZeroDivisionError
    assert places() == {"simgpu"}
    vae.to("cpu")  # as somebody else may have it
    with host.trainable(latent, 1):
        pass
    assert places() == {"cpu"}
