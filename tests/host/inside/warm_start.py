"""Embeddings turned to pictures with the host's own CLIP and CLIP_VISION, small and random; prints JSON."""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pack
import torch

pack.load_pack()
sys.path[:0] = [str(Path(__file__).parents[1])]

import comfy.model_management as management  # noqa: E402
import comfy.utils  # noqa: E402
import toyworld  # noqa: E402
from server import PromptServer  # noqa: E402
from textinv.nodes.embedding import TextInvCreateEmbedding as Node  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.hosts.comfy_vision import pooled_text  # noqa: E402
from textinv.textinv_core.training import warm_start  # noqa: E402

management.NUM_STREAMS = 2  # as on GPUs
PromptServer.instance = SimpleNamespace(send_progress_text=lambda text, node_id: None)
warm_start.STEPS = 40  # in a graph all of them are taken
said = []
logging.getLogger("textinv").setLevel(logging.INFO)
logging.getLogger("textinv").addHandler(type("Said", (logging.Handler,), {"emit": lambda _, r: said.append(r.msg)})())


def state(*models):
    """What must not change: weights, what kind of tensors they are, flags, options and the random state."""
    weights = [weight for model in models for weight in model.parameters()]
    options = [vars(clip.cond_stage_model.clip_g)[name] for name in ("layer", "layer_idx", "execution_device")]
    kinds = [(id(weight), weight.is_inference(), weight.requires_grad) for weight in weights]
    flags = management.in_training, management.NUM_STREAMS, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    # In bytes, as what the host leaves unset may be no numbers.
    values = [weight.detach().flatten().view(torch.uint8).tolist() for weight in weights if weight.numel() < 10_000]
    return kinds, options, flags, values, torch.get_rng_state().tolist()


def create(clip=None, clip_vision=None, images=None, name="cat", init_text="a dog", vectors=8):
    Node.hidden = SimpleNamespace(unique_id="1")
    given = {"clip": clip, "name": name, "init_text": init_text, "vectors": vectors}
    connected = {} if images is None else {"clip_vision": [clip_vision], "images": images}
    return Node.execute(**{key: [value] for key, value in given.items()}, **connected)[0][0]


def error(*given, **more):
    try:
        create(*given, **more)
    except ValueError as raised:
        return f"{type(raised).__name__}: {raised}"


def cosine(embedding):
    """As CLIPTextEncode and CLIPVisionEncode have it: of one prompt, with all pictures."""
    applied = ComfyHost(clip).apply(embedding)
    tokens = applied.tokenize(f"a photo of embedding:{embedding.name}")
    pooled = applied.encode_from_tokens(tokens, return_pooled=True)[1]
    embeds = torch.cat([vision.encode_image(each).image_embeds for each in pictures])
    return float(torch.cosine_similarity(pooled, embeds).mean())


result = {}
with torch.inference_mode():
    clip, vision = toyworld.random_clip(), toyworld.random_clip_vision()
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.rand(n, h, w, c, generator=generator) for n, h, w, c in ((1, 40, 48, 3), (2, 36, 36, 4))]
    plain = create(clip)
    seen = cosine(plain)  # loads both, and what that changes is the host's own affair
    clip.cond_stage_model.reset_clip_options()
    models = clip.cond_stage_model, vision.model
    before = state(*models)
    warm = create(clip, vision, pictures)
    result["as it was"] = before == state(*models)
    result["cosine"] = seen, cosine(warm)
    result["said"] = [each for each in said if "cosine" in each]  # besides what Create Embedding says
    result["the rest"] = {
        "clip_l": torch.equal(plain.vectors["clip_l"], warm.vectors["clip_l"]),
        "lengths": torch.allclose(plain.vectors["clip_g"].norm(dim=1), warm.vectors["clip_g"].norm(dim=1)),
        "name, step": (warm.name, warm.step, dict(warm.metadata)) == (plain.name, plain.step, dict(plain.metadata)),
    }

    # What ends it, be it an interrupt or an error, leaves all as it was.
    clip.cond_stage_model.reset_clip_options()
    counted = []

    def press(current, total, *_, **__):
        counted.append((current, total))
        management.interrupt_current_processing()

    comfy.utils.set_progress_bar_global_hook(press)
    before = state(*models)
    try:
        create(clip, vision, pictures)
    except management.InterruptProcessingException:
        result["interrupted"] = {"after one step": counted == [(1, 100)], "as it was": before == state(*models)}
    comfy.utils.set_progress_bar_global_hook(None)
    management.interrupt_current_processing(False)

    # The prompts are what the host itself makes of them.
    with pooled_text(clip, "clip_g") as pooled:
        ours = pooled(["a photo of embedding:cat", "embedding:cat, and little else"], warm)
    applied = ComfyHost(clip).apply(warm)
    tokens = applied.tokenize("a photo of embedding:cat")
    theirs = applied.encode_from_tokens(tokens, return_pooled=True)[1]
    result["as the host"] = float((ours[:1] - theirs).abs().max() / theirs.abs().max())

    unprojected = toyworld.random_clip_vision()
    unprojected.model.visual_projection = torch.nn.Identity()  # as SigLIP has it
    result["errors"] = {
        "width": error(clip, toyworld.random_clip_vision(64), pictures),
        "no projection": error(clip, unprojected, pictures),
        "none": error(clip, None, pictures),
        "too many": error(clip, vision, pictures, vectors=72),
    }
    clip.cond_stage_model.clip_g.transformer.text_projection.weight.zero_()
    result["errors"]["no text projection"] = error(clip, vision, pictures)
print(json.dumps(result))
