"""Trainings on the toy world with the host's own objects, on the CPU and on the device of `tests/simgpu.py`.

on_simgpu.py WORLD SDXL: the toy world's folder, a checkpoint, which is trained on simgpu alone. Prints, by precision:
the losses on both, how often each step read from the device, how many uploads of ours waited for it, and what was
counted in the last step.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pack
import torch

root = pack.load_pack()
sys.path[:0] = [str(Path(__file__).parents[n]) for n in (1, 2)]

import simgpu  # noqa: E402
import toyworld  # noqa: E402
from textinv.textinv_core import devices  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.images import load_folder  # noqa: E402
from textinv.textinv_core.training.examples import encoded_examples  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.INFO)
devices.NON_BLOCKING = {"simgpu"}
torch.set_num_threads(1)
world, sdxl = map(Path, pack.ARGS)
TEMPLATE = ("(a [name]:1.3) [filewords]", "[name] " + "small " * 50, "[name] and (no [filewords]:0.7)")
SETTINGS = TrainSettings(
    TEMPLATE, 4, "0.005", batch_size=2, gradient_accumulation=2, seed=3, loss_weighting="min_snr",
    gradient_clipping="norm", gradient_checkpointing="on",
)  # fmt: skip


def training(models, precision, **changed):
    """Losses, and for each step what was counted."""
    model, clip, vae = models
    host = ComfyHost(clip, model, vae, precision)
    examples = encoded_examples(host, list(load_folder(world, "pictures")))
    learnable = LearnableEmbedding(host.create_embedding("cat", "figure", 3))
    settings = replace(SETTINGS, **changed)
    losses, counted = [], []
    with host.trainable(examples[0].latent, 2) as trainable:
        steps = Training(trainable, examples, learnable, settings).steps()
        for _ in range(settings.steps):
            with simgpu.counting() as waits:
                losses.append(next(steps).loss)
            counted.append(waits)
    return losses, counted


def summary(counted):
    """Of the steps after the first, in which caches fill."""
    ours = [upload for waits in counted[1:] for upload in waits.blocking_uploads if upload.where.startswith("textinv_")]
    return {
        "reads": [len(waits.reads) for waits in counted[1:]],
        "our blocking uploads": len(ours),
        "counted": str(counted[-1]),
    }


def identities():
    """Of a model with a LoRA on it: not loaded, in part, as a whole, and no longer."""
    model, clip, vae = toyworld.load(world)
    name = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    weight = model.model.get_parameter(name)
    patched = model.clone()
    patched.add_patches({name: ("diff", (torch.ones_like(weight),))}, 0.5)
    host = ComfyHost(clip, patched, vae)
    seen = [host.identities()]
    for memory in (200_000, 0):  # 0 for as much as is needed
        patched.patch_model(patched.load_device, lowvram_model_memory=memory)
        seen.append({**host.identities(), "in part": patched.model.model_lowvram})
    patched.detach()
    return [*seen, host.identities()]


result = {}
with torch.inference_mode():
    # The attention there is for devices that torch does not know.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for precision in ("fp32", "bf16", "fp16"):
            result[precision] = {"cpu": training(toyworld.load(world), precision)[0]}
    simgpu.lend_to_comfyui()
    for precision, of in result.items():
        of["simgpu"], counted = training(toyworld.load(world), precision)
        of |= summary(counted)
    losses, counted = training(pack.load_checkpoint(sdxl), "auto", steps=2)
    result["identities"] = identities()
    result["sdxl"] = {"simgpu": losses, **summary(counted)}
print(json.dumps(result))
