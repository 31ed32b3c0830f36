"""Training on models as other nodes have patched them, and told to stop meanwhile; prints one JSON object.

patched.py WORLD: the toy world's folder.
"""

import copy
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
from comfy.model_patcher import ModelPatcher  # noqa: E402
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode  # noqa: E402
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelComputeDtype, ModelSamplingDiscrete  # noqa: E402
from comfy_extras.nodes_sag import SelfAttentionGuidance  # noqa: E402
from comfy_extras.nodes_tomesd import TomePatchModel  # noqa: E402
from textinv.textinv_core.embedding import Embedding  # noqa: E402
from textinv.textinv_core.hosts.base import Sampling  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.picture import Picture  # noqa: E402
from textinv.textinv_core.training.examples import Example, encoded_examples  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.INFO)
NETWORK = extension.WrappersMP.DIFFUSION_MODEL
# One weight of the UNet and one of the text encoder, as LoRA files name them.
IN_UNET = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
IN_TEXT = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
SEEN = "plain", "patched", "bypassed", "FreeU", "tokens merged", "SAG", "eps"
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


def lora(model, clip, seed):
    """Random matrices of rank 2, for a weight of each."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, root in ((IN_UNET, model.model), (IN_TEXT, clip.cond_stage_model)):
        rows, columns = root.get_parameter(f"{name.removeprefix('text_encoders.')}.weight").shape
        weights[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=generator)
        weights[f"{name}.lora_down.weight"] = torch.randn(2, columns, generator=generator)
    return weights


def with_lora(model, clip, strength_model, strength_clip, seed=0):
    return comfy.sd.load_lora_for_models(model, clip, lora(model, clip, seed), strength_model, strength_clip)


def bypassed(model, clip, strength):
    """As `with_lora`, computed beside the weights."""
    return comfy.sd.load_bypass_lora_for_models(model, clip, lora(model, clip, 0), strength, strength)


def skipping(clip, layer):
    clip = clip.clone()
    clip.clip_layer(layer)
    return clip


def with_option(clip):
    clip = clip.clone()
    clip.set_tokenizer_option("min_length", 12)
    return clip


def other_vae(vae):
    """A copy whose weights differ a little."""
    other = copy.copy(vae)
    other.first_stage_model = copy.deepcopy(vae.first_stage_model)
    other.patcher = ModelPatcher(other.first_stage_model, vae.patcher.load_device, vae.patcher.offload_device)
    with torch.inference_mode():
        next(other.first_stage_model.parameters()).mul_(1.01)
    return other


def scaled(model, by):
    """With a function around the network that holds a number."""
    model = model.clone()

    def wrap(apply_model, arguments):
        return by * apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model.set_model_unet_function_wrapper(wrap)
    return model


def mask(column):
    """White in one place."""
    found = torch.zeros(32, 32)
    found[0, column] = 1
    return found


def hosts(model, clip, vae):
    """What trains otherwise than any other here, by name."""
    patched, weaker = with_lora(model, clip, 1.0, 1.0), with_lora(model, clip, 0.5, 1.0)

    def sampling(kind, zsnr):
        return ModelSamplingDiscrete().patch(model, kind, zsnr)[0]

    def free(node, *values):
        return node.execute(model, *values).args[0]

    with torch.inference_mode(False):
        words = Embedding("style", {"clip_l": torch.ones(2, ComfyHost(clip).widths["clip_l"])})
        others = Embedding("style", {"clip_l": -words.vectors["clip_l"]})
    return {
        "plain": ComfyHost(clip, model, vae),
        "patched": ComfyHost(patched[1], patched[0], vae),
        "weaker": ComfyHost(weaker[1], weaker[0], vae),
        "in the text encoder alone": ComfyHost(patched[1], model, vae),
        "in the UNet alone": ComfyHost(clip, patched[0], vae),
        "another": ComfyHost(*with_lora(model, clip, 1.0, 1.0, seed=1)[::-1], vae),
        "on top of the other": ComfyHost(*with_lora(*patched, 1.0, 1.0, seed=1)[::-1], vae),
        "bypassed": ComfyHost(*bypassed(model, clip, 1.0)[::-1], vae),
        "bypassed, weaker": ComfyHost(*bypassed(model, clip, 0.5)[::-1], vae),
        "eps": ComfyHost(clip, sampling("eps", False), vae),
        "eps, zsnr": ComfyHost(clip, sampling("eps", True), vae),
        "v": ComfyHost(clip, sampling("v_prediction", False), vae),
        "bf16": ComfyHost(clip, ModelComputeDtype().patch(model, "bf16")[0], vae),
        "FreeU": ComfyHost(clip, free(FreeU, 1.1, 1.2, 0.9, 0.2), vae),
        "FreeU, stronger": ComfyHost(clip, free(FreeU, 1.1, 1.2, 0.9, 0.3), vae),
        "FreeU 2": ComfyHost(clip, free(FreeU_V2, 1.1, 1.2, 0.9, 0.2), vae),
        "tokens merged": ComfyHost(clip, free(TomePatchModel, 0.3), vae),
        "SAG": ComfyHost(clip, free(SelfAttentionGuidance, 0.5, 2.0), vae),
        "doubled": ComfyHost(clip, scaled(model, 2.0), vae),
        "tripled": ComfyHost(clip, scaled(model, 3.0), vae),
        "masked": ComfyHost(clip, scaled(model, mask(1)), vae),
        "masked elsewhere": ComfyHost(clip, scaled(model, mask(2)), vae),
        "skip 1": ComfyHost(skipping(clip, -1), model, vae),
        "skip 2": ComfyHost(skipping(clip, -2), model, vae),
        "tokenizer option": ComfyHost(with_option(clip), model, vae),
        "style": ComfyHost(ComfyHost(clip).apply(words), model, vae),
        "other style": ComfyHost(ComfyHost(clip).apply(others), model, vae),
        "another VAE": ComfyHost(clip, model, other_vae(vae)),
        "fp16": ComfyHost(clip, model, vae, precision="fp16"),
    }


def marks():
    """Identities of models that train otherwise than each other, or that differ in nothing that counts."""
    model, clip, vae = toyworld.load(world)
    different = hosts(model, clip, vae)
    found = {name: host.identities() for name, host in different.items()}
    prints = {name: host.fingerprint() for name, host in different.items()}
    latent, same = torch.zeros(4, 8, 8), {}

    def look(where):
        same[where] = {name: different[name].identities() for name in SEEN}
        prints[where] = different["patched"].fingerprint()

    for name, precision in (("patched", "auto"), ("patched", "bf16"), ("bypassed", "auto"), ("eps", "auto")):
        host = ComfyHost(different[name]._clip, different[name]._model, vae, precision=precision)
        with host.trainable(latent, 1):  # the patches are on the weights now
            look(f"in training, {name} {precision}")
        look(f"after training, {name} {precision}")
    for name in ("FreeU", "tokens merged", "SAG"):  # the latter two keep what they find on the way
        losses(different[name]._model, clip)
        different[name].sample(["hat"], [1], latent.shape, Sampling(2))
    look("after training and sampling")
    management.unload_all_models()
    look("unloaded")
    same["sampling otherwise"] = {"plain": ComfyHost(clip, sampled_otherwise(model), vae).identities()}
    again = hosts(*toyworld.load(world))
    return {
        "different": found,
        "same": [*same.values(), {name: host.identities() for name, host in again.items()}],
        "prints": [*{*prints.values()}],
    }


def sampled_otherwise(model):
    """With what only changes how pictures are generated."""
    model = EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).args[0].clone()
    model.set_model_sampler_post_cfg_function(lambda arguments: arguments["denoised"])
    model.add_wrapper(extension.WrappersMP.OUTER_SAMPLE, lambda executor, *args, **kwargs: executor(*args, **kwargs))
    return model


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


def encoded(model, clip, vae):
    """How many pictures of three are encoded until the person stops at the end of the first, when they are asked for
    again, when another model has another LoRA and this VAE, and with another VAE; whether that gives the same bits as
    encoding does, and other latents for another VAE."""
    pictures = [Picture(torch.rand(32, 32, 3), torch.ones(32, 32), "", str(n)) for n in range(3)]
    encode, done, counts = vae.encode, [], []

    def counting(encode, stop=False):
        def count(pixels):
            latent = encode(pixels)
            done.append(pixels)
            if stop:
                management.interrupt_current_processing()
            return latent

        return count

    def latents(host):
        done.clear()
        try:
            return [example.latent for example in encoded_examples(host, pictures)]
        except ComfyHost.interrupts:
            return None
        finally:
            counts.append(len(done))

    host = ComfyHost(clip, model, vae)
    vae.encode = counting(encode, stop=True)
    stopped = latents(host) is None
    vae.encode = counting(encode)
    first = latents(host)
    patched, _ = with_lora(model, clip, 1.0, 1.0)
    again = latents(ComfyHost(clip, patched, vae))
    _, _, other = toyworld.load(world)
    other.first_stage_model.quant_conv.bias.data += 1
    other.encode = counting(other.encode)
    moved = latents(ComfyHost(clip, model, other))
    return {
        "stopped": stopped,
        "counts": counts,
        "same bits": all(map(torch.equal, [*first, *again], 2 * host.encode([each.pixels for each in pictures]))),
        "other": not any(map(torch.equal, first, moved)),
    }


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
        "encoded": encoded(model, clip, vae),
    }
print(json.dumps(result))
