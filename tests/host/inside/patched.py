"""Training on models as other nodes have patched them, and told to stop meanwhile; prints one JSON object.

patched.py WORLD: the toy world's folder.
"""

import json
import logging
import sys
from pathlib import Path

import pack
import torch

pack.load_pack()
sys.path[:0] = [str(Path(__file__).parents[1])]

import comfy.model_management as management  # noqa: E402
import comfy.patcher_extension as extension  # noqa: E402
import comfy.sd  # noqa: E402
import toyworld  # noqa: E402
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelComputeDtype, ModelSamplingDiscrete  # noqa: E402
from textinv.textinv_core.hosts.base import Sampling  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.training.examples import Example  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.INFO)
NETWORK = extension.WrappersMP.DIFFUSION_MODEL
# One weight of the UNet and one of the text encoder, as LoRA files name them.
IN_UNET = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
IN_TEXT = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
[world] = map(Path, pack.ARGS)


def training(host, trainable, accumulation=1):
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False):
        examples = [Example(torch.randn(4, 8, 8, generator=generator), caption) for caption in ("hat", "hair")]
    settings = TrainSettings(("[name] [filewords]",), 2, "0.01", batch_size=2, gradient_accumulation=accumulation)
    start = host.create_embedding("my-dog", "figure", 2)
    return Training(trainable, examples, LearnableEmbedding(start), settings)


def losses(model, clip):
    host = ComfyHost(clip, model)
    with host.trainable(torch.zeros(4, 8, 8), 2) as trainable:
        return [step.loss for step in training(host, trainable).steps()]


def cached(node, model, clip, vae):
    """What of a model with one of core's caches is not as it should be."""
    [model] = node.execute(model, reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False).args
    wrappers = extension.copy_nested_dicts(model.wrappers)
    cache = model.model_options["transformer_options"]["easycache"]
    of_cache = dict(vars(cache))
    with_cache = losses(model, clip)
    sampled = ComfyHost(clip, model, vae).sample(["hat"], [1], (4, 8, 8), Sampling(6))
    return {
        "losses": with_cache,
        "wrappers as before": bool(wrappers) and model.wrappers == wrappers,
        "cache as before": dict(vars(cache)) == of_cache,
        "samples": bool(sampled.isfinite().all()),
    }


def with_lora(model, clip, strength_model, strength_clip, seed=0):
    """The two patched with random matrices of rank 2, on a weight of each."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, root in ((IN_UNET, model.model), (IN_TEXT, clip.cond_stage_model)):
        rows, columns = root.get_parameter(f"{name.removeprefix('text_encoders.')}.weight").shape
        weights[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        weights[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
    return comfy.sd.load_lora_for_models(model, clip, weights, strength_model, strength_clip)


def marks():
    """(fingerprint, identity) of models that differ in their patches, or only in where their weights are now."""
    model, clip, _ = toyworld.load(world)
    patched = with_lora(model, clip, 1.0, 1.0)
    hosts = {
        "plain": ComfyHost(clip, model),
        "patched": ComfyHost(patched[1], patched[0]),
        "weaker": ComfyHost(*with_lora(model, clip, 0.5, 1.0)[::-1]),
        "in the text encoder alone": ComfyHost(*with_lora(model, clip, 0.0, 1.0)[::-1]),
        "in the UNet alone": ComfyHost(*with_lora(model, clip, 1.0, 0.0)[::-1]),
        "another": ComfyHost(*with_lora(model, clip, 1.0, 1.0, seed=1)[::-1]),
        "another prediction": ComfyHost(
            patched[1], ModelSamplingDiscrete().patch(patched[0], "v_prediction", False)[0]
        ),
        "another precision": ComfyHost(patched[1], ModelComputeDtype().patch(patched[0], "bf16")[0]),
        "on top of the other": ComfyHost(*with_lora(*patched, 1.0, 1.0, seed=1)[::-1]),
    }
    different = {name: (host.fingerprint(), host.identity()) for name, host in hosts.items()}
    again, clip_again, _ = toyworld.load(world)
    same = {"loaded again": ComfyHost(*with_lora(again, clip_again, 1.0, 1.0)[::-1])}
    same = {name: (host.fingerprint(), host.identity()) for name, host in same.items()}
    latent = torch.zeros(4, 8, 8)
    for precision in ("auto", "bf16"):
        host = ComfyHost(patched[1], patched[0], precision=precision)
        with host.trainable(latent, 1):  # the patches are on the weights now
            same[f"in training, {precision}"] = host.fingerprint(), host.identity()
        same[f"after training, {precision}"] = host.fingerprint(), host.identity()
    with ComfyHost(clip, model).trainable(latent, 1):  # another's weights are
        same["while another is trained on"] = hosts["patched"].fingerprint(), hosts["patched"].identity()
    return {"different": different, "same": same}


def batches_until_interrupt(model, clip):
    """How many batches of a step are begun where the person stops at the end of the first; whether it is heard."""
    host, begun = ComfyHost(clip, model), []
    with host.trainable(torch.zeros(4, 8, 8), 2) as trainable:
        conditions, predict = trainable.conditions, trainable.predict

        def begin(*args):
            begun.append(args)
            return conditions(*args)

        def predict_and_stop(*args):
            predicted = predict(*args)
            management.interrupt_current_processing()  # behind the network: its operations would hear it, too
            return predicted

        trainable.conditions, trainable.predict = begin, predict_and_stop
        try:
            training(host, trainable, accumulation=3).advance()
        except ComfyHost.interrupts:
            return len(begun), True
    return len(begun), False


def wrapped(model, clip):
    """How often wrappers of the network are called, in two steps: on the model itself, and in its options."""
    calls = {"on the model": 0, "in its options": 0}

    def counting(where):
        def count(executor, *args, **kwargs):
            calls[where] += 1
            return executor(*args, **kwargs)

        return count

    model = model.clone()
    model.add_wrapper_with_key(NETWORK, "test", counting("on the model"))
    extension.add_wrapper_with_key(NETWORK, "test", counting("in its options"), model.model_options, True)
    losses(model, clip)
    return calls


with torch.inference_mode():
    model, clip, vae = toyworld.load(world)
    result = {
        "plain": losses(model, clip),
        "easy": cached(EasyCacheNode, model, clip, vae),
        "lazy": cached(LazyCacheNode, model, clip, vae),
        "marks": marks(),
        "interrupted": batches_until_interrupt(model, clip),
        "wrapped": wrapped(model, clip),
    }
print(json.dumps(result))
