"""Trainings on the toy world as core nodes before Train have patched it; prints JSON by node.

nodes_before.py WORLD [NODE ...]: the toy world's folder; those named, or all.

What is printed of each: `slope` of the loss along its gradient, measured over computed; `checkpointed`, the largest
difference of the gradient with checkpoints, as a part of its largest number; `counts`, whether the loss is another
than without the node; `changed`, what of the host is not as it was; `samples`, whether pictures can be made afterwards,
and are the same as before; `told`, what was said to the person.
"""

import json
import logging
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pack
import torch

pack.load_pack()
sys.path[:0] = [str(Path(__file__).parents[1])]

import comfy.hooks  # noqa: E402
import comfy.model_management as management  # noqa: E402
import comfy.patcher_extension  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import toyworld  # noqa: E402
from comfy_extras import (  # noqa: E402
    nodes_apg,
    nodes_attention_multiply,
    nodes_cfg,
    nodes_differential_diffusion,
    nodes_easycache,
    nodes_eps,
    nodes_freelunch,
    nodes_fresca,
    nodes_hooks,
    nodes_hypernetwork,
    nodes_hypertile,
    nodes_mahiro,
    nodes_model_advanced,
    nodes_model_merging,
    nodes_pag,
    nodes_sag,
    nodes_tcfg,
    nodes_tomesd,
)
from losses import NAME, Losses, largest_difference  # noqa: E402
from state import state  # noqa: E402
from textinv.textinv_core.hosts.base import Sampling  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402

logging.disable(logging.INFO)
NETWORK = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
# One weight of the UNet and one of the text encoder, as LoRA files name them.
IN_UNET = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
IN_TEXT = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
LATENT = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
world, chosen = Path(pack.ARGS[0]), pack.ARGS[1:]


def lora(model, clip):
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, root in ((IN_UNET, model.model), (IN_TEXT, clip.cond_stage_model)):
        rows, columns = root.get_parameter(f"{name.removeprefix('text_encoders.')}.weight").shape
        weights[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        weights[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
    return weights


def hypernetwork(model):
    """With a layer each for keys and values of every width."""
    widths = {
        weight.shape[1]
        for name, weight in model.model.named_parameters()
        if name.endswith(("to_k.weight", "to_v.weight"))
    }
    generator = torch.Generator().manual_seed(0)

    def layer(width):
        return {
            "linear.weight": torch.randn(width, width, generator=generator) * 0.1,
            "linear.bias": torch.zeros(width),
        }

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "hypernetwork.pt")
        torch.save({width: [layer(width), layer(width)] for width in widths}, file)
        with mock.patch.object(folder_paths, "get_full_path_or_raise", lambda *_: str(file)):
            return nodes_hypernetwork.HypernetworkLoader.execute(model, "any", 1.0).args[0]


def hooked(model, clip, strength_model, schedule=False):
    hooks = comfy.hooks.create_hook_lora(lora(model, clip), strength_model, 1.0)
    if schedule:
        keyframes = comfy.hooks.HookKeyframeGroup()
        for strength, start in ((1.0, 0.0), (0.2, 0.5)):
            keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
        hooks.set_keyframes_on_hooks(keyframes)
    [clip] = nodes_hooks.SetClipHooks().apply_hooks(clip, schedule, True, hooks)
    return model, clip


def nodes(model, clip):
    """Node -> the MODEL and CLIP that it makes of these."""

    def of_model(execute, *values):
        made = execute(model, *values)
        return (made.args if hasattr(made, "args") else made)[0], clip

    sampling = nodes_model_advanced.ModelSamplingDiscrete().patch
    attention = nodes_attention_multiply
    caches = 0.2, 0.15, 0.95, False
    other_model, other_clip = comfy.sd.load_lora_for_models(*toyworld.load(world)[:2], lora(model, clip), 1.0, 1.0)
    merged = nodes_model_merging
    return {
        "LoraLoader": comfy.sd.load_lora_for_models(model, clip, lora(model, clip), 1.0, 1.0),
        "LoraLoaderBypass": comfy.sd.load_bypass_lora_for_models(model, clip, lora(model, clip), 1.0, 1.0),
        "HypernetworkLoader": (hypernetwork(model), clip),
        "SetClipHooks": hooked(model, clip, 1.0),
        "SetClipHooks, CLIP alone": hooked(model, clip, 0.0),
        "SetClipHooks, scheduled": hooked(model, clip, 0.0, schedule=True),
        "ModelMergeSimple": (merged.ModelMergeSimple().merge(model, other_model, 0.5)[0], clip),
        "CLIPMergeSimple": (model, merged.CLIPMergeSimple().merge(clip, other_clip, 0.5)[0]),
        "TomePatchModel": of_model(nodes_tomesd.TomePatchModel.execute, 0.5),
        "HyperTile": of_model(nodes_hypertile.HyperTile.execute, 32, 2, 0, False),
        "FreeU_V2": of_model(nodes_freelunch.FreeU_V2.execute, 1.1, 1.2, 0.9, 0.2),
        "ModelSamplingDiscrete v": of_model(sampling, "v_prediction", False),
        "ModelSamplingDiscrete x0": of_model(sampling, "x0", False),
        "ModelSamplingDiscrete lcm": of_model(sampling, "lcm", True),
        "UNetSelfAttentionMultiply": of_model(attention.UNetSelfAttentionMultiply.execute, 1.2, 1.1, 0.9, 1.1),
        "UNetCrossAttentionMultiply": of_model(attention.UNetCrossAttentionMultiply.execute, 1.2, 1.1, 0.9, 1.1),
        "CLIPAttentionMultiply": (model, attention.CLIPAttentionMultiply.execute(clip, 1.2, 1.1, 0.9, 1.1).args[0]),
        "EasyCache": of_model(nodes_easycache.EasyCacheNode.execute, *caches),
        "LazyCache": of_model(nodes_easycache.LazyCacheNode.execute, *caches),
        "SelfAttentionGuidance": of_model(nodes_sag.SelfAttentionGuidance.execute, 0.5, 2.0),
        "PerturbedAttentionGuidance": of_model(nodes_pag.PerturbedAttentionGuidance.execute, 3.0),
        "APG": of_model(nodes_apg.APG.execute, 1.0, 5.0, 0.0),
        "CFGZeroStar": of_model(nodes_cfg.CFGZeroStar.execute),
        "CFGNorm": of_model(nodes_cfg.CFGNorm.execute, 1.0),
        "TCFG": of_model(nodes_tcfg.TCFG.execute),
        "FreSca": of_model(nodes_fresca.FreSca.execute, 1.0, 1.25, 20),
        "Mahiro": of_model(nodes_mahiro.Mahiro.execute),
        "EpsilonScaling": of_model(nodes_eps.EpsilonScaling.execute, 1.005),
        "DifferentialDiffusion": of_model(nodes_differential_diffusion.DifferentialDiffusion.execute),
    }


class SeededLosses(Losses):
    """With the same random numbers each time, which some patches draw."""

    def conditions(self, vectors):
        torch.manual_seed(0)
        return super().conditions(vectors)


@contextmanager
def listening():
    told = []
    listener = logging.Handler()
    listener.emit = lambda record: told.append(record.getMessage())
    logging.getLogger("textinv").addHandler(listener)
    yield told
    logging.getLogger("textinv").removeHandler(listener)


def look_at(model, clip, vae, plain_loss=None):
    host = ComfyHost(clip, model, vae)
    start = host.create_embedding(NAME, "figure", 2).vectors
    picture = ["hat"], [1], LATENT.shape, Sampling(2)
    sampled = host.sample(*picture)
    management.load_models_gpu([model, clip.patcher])  # which leaves marks of its own on modules
    before = state(model, clip)
    with listening() as told:
        with host.trainable(LATENT, 1) as trainable:
            losses = SeededLosses(trainable, LATENT)
            loss, gradient = losses.gradient(start)
            slope = losses.slope(start, gradient, loss)
            trainable.checkpoint_activations()
            _, again = losses.gradient(start)
        with host.trainable(LATENT, 1):  # as a run does after its previews
            pass
    after = state(model, clip)
    return loss, {
        "slope": slope,
        "checkpointed": largest_difference(again, gradient),
        "counts": plain_loss is not None and loss != plain_loss,
        "changed": sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)),
        "samples": torch.equal(sampled, host.sample(*picture)),
        "told": told,
    }


def told_to_the_network(model, clip):
    """What a wrapper finds in the options of a batch of two."""
    found = []

    def look(executor, *args, **kwargs):
        options = next(each for each in (*args, *kwargs.values()) if isinstance(each, dict) and "sigmas" in each)
        levels, sigmas = options["sample_sigmas"], options["sigmas"]
        found.append((tuple(options["uuids"]), levels, sigmas))
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(NETWORK, "test", look)
    with ComfyHost(clip, model).trainable(LATENT, 2) as trainable, torch.no_grad():
        conditions = trainable.conditions(["hat", "hair"], [{}, {}], [LATENT, LATENT])
        for _ in range(2):
            trainable.predict(torch.stack([LATENT, LATENT]), torch.tensor([0, 700]), conditions)
    names = [name for uuids, *_ in found for name in uuids]
    _, levels, sigmas = found[0]
    return {
        "uuids": [len(names), len(set(names))],
        "falling": bool((levels.diff() < 0).all()),
        "last": float(levels[-1]),
        "after each": [float(levels[int((levels == sigma).nonzero()[0]) + 1]) for sigma in sigmas],
        "expected": [0.0, float(levels[len(levels) - 1 - 700])],
    }


with torch.inference_mode():
    model, clip, vae = toyworld.load(world)
    plain_loss, plain = look_at(model, clip, vae)
    result = {"none": plain}
    told = told_to_the_network(model, clip)
    for name, (patched_model, patched_clip) in nodes(model, clip).items():
        if chosen and name not in chosen:
            continue
        try:
            _, result[name] = look_at(patched_model, patched_clip, vae, plain_loss)
        except Exception as error:
            logging.exception(name)
            result[name] = {"error": f"{type(error).__name__}: {error}"}
        print(name, str(result[name])[:400], file=sys.stderr)
print(json.dumps({"nodes": result, "told to the network": told}))
