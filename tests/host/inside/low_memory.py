"""Trainings on the toy world, on the device of `tests/simgpu.py`, as ComfyUI is started where there is little memory.

low_memory.py WORLD: the toy world's folder. Prints for each way: the losses, whether vectors moved, where each model
was when its pictures were encoded, in training and afterwards (the share of its bytes that was on the device), and
whether the host is as it was.
"""

import json
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pack
import torch

root = pack.load_pack()
sys.path[:0] = [str(Path(__file__).parents[n]) for n in (1, 2)]

import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import simgpu  # noqa: E402
import toyworld  # noqa: E402
from comfy.cli_args import args  # noqa: E402
from comfy.model_management import VRAMState  # noqa: E402
from comfy_aimdo import host_buffer  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.images import load_folder  # noqa: E402
from textinv.textinv_core.training import latents  # noqa: E402
from textinv.textinv_core.training.examples import encoded_examples  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.INFO)
torch.set_num_threads(1)
[world] = map(Path, pack.ARGS)
SETTINGS = TrainSettings(
    ("(a [name]:1.3) [filewords]", "[name]"), 3, "0.005", batch_size=2, gradient_accumulation=1, seed=3
)


def modules(models):
    model, clip, vae = models
    return {"model": model.model, "clip": clip.cond_stage_model, "vae": vae.first_stage_model}


def on_device(trained):
    """Of each model, the share of its bytes that is on the device."""

    def share(module):
        sizes = [(weight.nbytes, weight.device.type == "simgpu") for weight in module.parameters()]
        return round(sum(size for size, there in sizes if there) / sum(size for size, _ in sizes), 3)

    return {name: share(module) for name, module in modules(trained).items()}


def state(models):
    """What must not change: the values of the weights, what kind of tensors they are, and the host's flags."""
    weights = [weight for module in modules(models).values() for weight in module.parameters()]
    flags = management.in_training, management.NUM_STREAMS, management.intermediate_device
    kinds = [(type(weight), weight.is_inference(), weight.requires_grad, weight.dtype) for weight in weights]
    # In bytes, as some that are used by nothing are not numbers.
    return kinds, [weight.detach().cpu().flatten().view(torch.uint8).clone() for weight in weights], flags


def same(before, after):
    (kinds, weights, flags), (kinds_after, weights_after, flags_after) = before, after
    return kinds == kinds_after and flags == flags_after and all(map(torch.equal, weights, weights_after))


def trained(load=toyworld.load):
    """What a training is like with models that `load` gives."""
    latents.KEPT = latents.Latents()
    models = load(world)
    model, clip, vae = models
    host = ComfyHost(clip, model, vae)
    before = state(models)
    examples = encoded_examples(host, list(load_folder(world, "pictures")))
    where = {"encoding": on_device(models)}
    with host.trainable(examples[0].latent, 2) as trainable:
        used = (trainable._model, trainable._clip, vae)  # which are clones where memory is dynamic
        steps = list(Training(trainable, examples, LearnableEmbedding(start), SETTINGS).steps())
        where["training"] = on_device((used[0], clip, vae)) | {"clip": on_device((used[0], used[1], vae))["clip"]}
    found = {
        "losses": [step.loss for step in steps],
        "moved": all(not torch.equal(steps[-1].learnt.vectors[key], rows) for key, rows in start.vectors.items()),
        "latent": float(sum(example.latent.double().abs().sum() for example in examples)),
        "where": where,
    }
    del trainable, used, steps
    # The VAE comes back when it is asked for.
    shape = vae.decode(examples[0].latent[None]).shape
    where["decoding"] = on_device(models)["vae"]
    management.unload_all_models()
    where["unloaded"] = on_device(models)
    return found | {"decoded": list(shape), "as it was": same(before, state(models)), "finite": finite(found["losses"])}


def finite(losses):
    return all(map(math.isfinite, losses))


def little(share):
    """Free memory for about so much of a model's weights."""

    def free(dev=None, torch_free_too=False):
        size = 1e12 if dev is not None and torch.device(dev).type == "cpu" else management.minimum_inference_memory()
        size = int(size + share * TOY_BYTES)
        return (size, size) if torch_free_too else size

    return free


def load_dynamic(folder):
    """As where dynamic VRAM works: MODEL and CLIP stream their weights, which can be loaded once more from their file.

    (The streaming itself is CUDA's, and so are the buffers for it; nothing is computed with these models here.)
    """
    host_buffer.HostBuffer = lambda *sizes: SimpleNamespace(size=0)
    plain = comfy.model_patcher.CoreModelPatcher
    vae = toyworld.load(folder)[2]
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    try:
        model, clip, _ = toyworld.load(folder)
    finally:
        comfy.model_patcher.CoreModelPatcher = plain

    def again(n):
        def load(disable_dynamic):
            assert disable_dynamic
            loaded = toyworld.load(folder)[n]
            return loaded.patcher if n else loaded

        return load

    model.cached_patcher_init, clip.patcher.cached_patcher_init = (again(0), ()), (again(1), ())
    assert model.is_dynamic() and clip.patcher.is_dynamic()
    return model, clip, vae


result = {}
with torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
    TOY_BYTES = toyworld.load(world)[0].model_size()
    start = ComfyHost(toyworld.load(world)[1]).create_embedding("cat", "figure", 3)
    result["cpu"] = trained()
    simgpu.lend_to_comfyui()
    plenty, text_encoders = management.get_free_memory, management.text_encoder_device
    result["plenty"] = trained()
    management.text_encoder_device = lambda: torch.device("cpu")  # what the host answers then
    management.vram_state = VRAMState.LOW_VRAM
    result["lowvram"] = trained()
    management.get_free_memory = little(0.5)
    result["lowvram, little"] = trained()
    management.vram_state = VRAMState.NO_VRAM
    result["novram"] = trained()
    management.vram_state, management.get_free_memory = VRAMState.NORMAL_VRAM, plenty
    management.text_encoder_device = text_encoders
    args.cpu_vae = True
    result["cpu_vae"] = trained()
    args.cpu_vae = False
    result["dynamic"] = trained(load_dynamic)
print(json.dumps(result))
