"""The diffusers host against the ComfyUI host: the same checkpoint file, pictures, noise, prompts and vectors, float32.

They share the training core and nothing else: two loaders, two tokenizers, two implementations of every network.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

from textinv_core.hosts.diffusers import load
from textinv_core.hosts.pipelines import CONFIGS, _prediction
from textinv_core.training.objective import prediction_losses

# Checkpoint -> its family, and what its UNet has other than the family's.
CHECKPOINTS = {
    "sd15": ("sd1", {"block_out_channels": [320] * 4}),
    "sd2v": ("sd2", {"block_out_channels": [320] * 4, "attention_head_dim": 5}),
    "sdxl": ("sdxl", {"block_out_channels": [320] * 3, "attention_head_dim": 5}),
}
CASES = {
    "plain": [
        "a photo of embedding:my-dog, on grass",
        "embedding:my-dog and embedding:my-dog",
        "wow!!! embedding:my-dog",
    ],
    "weights": ["(embedding:my-dog:1.3) on grass", "a \\(red\\) (hat:0.7) embedding:my-dog<x>", "embedding:my-dog"],
    "long": [
        "embedding:my-dog, " + "very small and " * 30 + "embedding:my-dog",
        "embedding:my-dog",
        "a embedding:my-dog",
    ],
}


def inputs(file: Path, cases: dict[str, list[str]], widths: dict[str, int]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    made = {
        "images": torch.rand(3, 64, 128, 3, generator=generator),
        "gaussian": torch.randn(3, 4, 8, 16, generator=generator),
        "t": torch.tensor([40, 500, 930]),
    }
    for n, (key, width) in enumerate(widths.items()):  # not equally many for all encoders
        made[f"vectors {key}"] = 0.014 * torch.randn(4 - n, width, generator=generator)
    save_file(made, file, {"cases": json.dumps(cases)})
    return made


def config_folder(folder: Path, family: str, unet: dict, scheduler: dict) -> Path:
    """The shipped configurations of `family`, but for its UNet and its noise."""
    shutil.copytree(CONFIGS / family, folder)
    for file, change in (("unet/config", unet), ("scheduler/scheduler_config", scheduler)):
        path = folder / f"{file}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("checkpoint", ["sd15", pytest.param("sd2v", marks=pytest.mark.long), "sdxl"])
def test_hosts_agree(inside, checkpoints, checkpoint, tmp_path):
    family, changed = CHECKPOINTS[checkpoint]
    widths = {"sd1": {"clip_l": 768}, "sd2": {"clip_h": 1024}, "sdxl": {"clip_l": 768, "clip_g": 1280}}[family]
    cases = {case: prompts for case, prompts in CASES.items() if case != "long" or checkpoint == "sd15"}
    given = inputs(tmp_path / "inputs.safetensors", cases, widths)
    assert inside("parity.py", checkpoints / f"{checkpoint}.safetensors", tmp_path) == []
    expected = load_file(tmp_path / "comfy.safetensors")

    model_file = tmp_path / "model.safetensors"
    # With narrow UNets a config is needed, but eps or v is to be found out as without one.
    noise = _prediction(load_file(model_file), family)
    host = load(model_file, config_folder(tmp_path / "config", family, changed, noise))
    model_file.unlink()  # up to 2 GB, and pytest keeps folders
    assert host.widths == widths
    errors = {"latents": error(torch.stack(host.encode(list(given["images"]))), expected["latents"])}
    latents = list(expected["latents"])
    with host.trainable(latents[0], len(latents)) as model:
        for case, prompts in cases.items():
            vectors = {key: given[f"vectors {key}"].clone().requires_grad_() for key in widths}
            lookups = [{"my-dog": lambda key, occurrence, v=vectors: v[key] * (1 + occurrence)}] * len(prompts)
            conditions = model.conditions(prompts, lookups, latents)
            loss = prediction_losses(model, expected["latents"], given["gaussian"], given["t"], conditions).mean()
            gradients = torch.autograd.grad(loss, list(vectors.values()))
            errors[f"{case} loss"] = error(loss.detach(), expected[f"{case} loss"])
            for key, gradient in zip(vectors, gradients, strict=True):
                assert gradient.norm() > 0
                errors[f"{case} {key}"] = error(gradient, expected[f"{case} {key}"])
    assert all(error < 1e-4 for error in errors.values()), errors
