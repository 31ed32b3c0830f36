"""A step on Flux, with more weights than activations, which stay in RAM and come to the device as they are used; prints
JSON.

The device is that of `tests/simgpu.py`. Of the forward pass with gradient checkpoints: `held`, the bytes that are on
the device when it is done and backward is still to come, `weights`, those of the model, of which `there` are on the
device, and `like a weight`, how many of the blocks of memory that are held are as large as a large matrix of the model.
`loss` and `gradient` are compared with those on the CPU.
"""

import json
import logging
import sys
from pathlib import Path

import pack
import torch

pack.load_pack()
sys.path[:0] = [str(Path(__file__).parents[2])]

import comfy.model_management as management  # noqa: E402
import comfy.supported_models as supported  # noqa: E402
import simgpu  # noqa: E402
from small.of_clip_and_t5 import FLUX, flux_clip, model  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.training.objective import prediction_losses  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402

logging.disable(logging.WARNING)
torch.set_num_threads(1)
LARGE = 2**20  # a block's states are 0.4 MB
SIZES = FLUX | {"hidden_size": 384, "num_heads": 8, "axes_dim": [8, 20, 20], "depth": 4, "depth_single_blocks": 8}


class Made:
    """Knows all memory on the device that operations have made."""

    def __init__(self):
        self._made, moved = {}, simgpu._moved

        def noted(tensor):
            result = moved(tensor)
            storage = result.untyped_storage()
            self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            return result

        simgpu._moved = noted

    def held(self):
        """The sizes of what is still there."""
        return [size for reference, size in self._made.values() if not reference.expired()]


def step(made=None):
    """Loss and gradient, and what `made` saw on the way."""
    flux, clip = model(supported.Flux, **SIZES, txt_ids_dims=[])(), flux_clip()
    host = ComfyHost(clip, flux)
    start = host.create_embedding("my-dog", "a dog", 2)
    matrices = {each.nbytes for each in flux.model.diffusion_model.parameters() if each.nbytes > LARGE}
    with torch.inference_mode(False):
        latent, noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    with host.trainable(latent, 1) as trainable:
        trainable.checkpoint_activations()
        trainable.give_way()
        vectors = {key: rows.clone().to(trainable.device).requires_grad_() for key, rows in start.vectors.items()}

        def loss():
            lookup = {"my-dog": lambda key, occurrence: vectors[key]}
            there = latent.to(trainable.device)
            conditions = trainable.conditions(["a embedding:my-dog"], [lookup], [there])
            t = torch.tensor([600])
            return prediction_losses(trainable, there[None], noise[None].to(trainable.device), t, conditions)[0]

        found = loss()
        held = made.held() if made else []
        gradient = torch.autograd.grad(found, list(vectors.values()))
        weights = list(flux.model.diffusion_model.parameters())
        return {
            "loss": float(found.detach()),
            "gradient": torch.cat([each.detach().cpu().flatten() for each in gradient]),
            "weights": sum(weight.nbytes for weight in weights),
            "there": sum(weight.nbytes for weight in weights if weight.device.type == "simgpu"),
            "held": sum(held),
            "like a weight": sum(size in matrices for size in held),
        }


with torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
    here = step()
    simgpu.lend_to_comfyui()
    management.vram_state = management.VRAMState.NO_VRAM
    management.get_free_memory = lambda dev=None, torch_free_too=False: (0, 0) if torch_free_too else 0
    there = step(Made())
off = float((there.pop("gradient") - here["gradient"]).abs().max() / here["gradient"].abs().max())
print(json.dumps(there | {"loss off": abs(there["loss"] - here["loss"]), "gradient off": off}))
