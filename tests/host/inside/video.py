"""Training and previewing on Wan 2.1's model and VAE for videos, made small, with the toy world's CLIP; prints JSON.

video.py WORLD: the toy world's folder.
"""

import json
import logging
import sys
from pathlib import Path

import pack
import torch

pack.load_pack()
sys.path[:0] = [str(Path(__file__).parents[1])]

import comfy.ldm.wan.vae  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import toyworld  # noqa: E402
from textinv.textinv_core.hosts.base import Sampling  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.picture import Picture  # noqa: E402
from textinv.textinv_core.training.examples import encoded_examples  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.INFO)
CPU = torch.device("cpu")
VAE = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
[world] = map(Path, pack.ARGS)


def fill(tensors):
    """Random weights that keep signals about as large as they are."""
    generator = torch.Generator().manual_seed(0)
    for weight in tensors:
        scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.0
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + (weight.ndim == 1))


def load(width):
    """MODEL and VAE, for text of that width."""
    sizes = {"dim": 48, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "text_dim": width, "text_len": 77}
    config = comfy.supported_models.WAN21_T2V({"image_model": "wan2.1", "model_type": "t2v", **sizes})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=CPU)
    fill(model.parameters())
    pictures = comfy.ldm.wan.vae.WanVAE(**VAE)
    fill(pictures.parameters())
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU), comfy.sd.VAE(sd=pictures.state_dict())


with torch.inference_mode():
    _, clip, _ = toyworld.load(world)
    model, vae = load(ComfyHost(clip).widths["clip_l"])
    host = ComfyHost(clip, model, vae)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False):
        mask = torch.linspace(0, 1, 64).expand(48, 64)
        pixels = torch.rand(2, 48, 64, 3, generator=generator)
        pictures = [Picture(pixels[0], mask, "hat", "1"), Picture(pixels[1], torch.ones(48, 64), "hair", "2")]
    examples = encoded_examples(host, pictures)
    start = host.create_embedding("my-dog", "figure", 2)
    settings = TrainSettings(("[name] [filewords]",), 8, "0.05", batch_size=2, gradient_accumulation=1)
    shape = examples[0].latent.shape
    with host.trainable(examples[0].latent, 2) as trainable:
        steps = list(Training(trainable, examples, LearnableEmbedding(start), settings).steps())
    learnt = steps[-1].learnt
    made = host.sample(["embedding:my-dog"], [1], shape, Sampling(2), [learnt])
    frames = host.decode(torch.randn(2, 16, 3, *shape[-2:], generator=torch.Generator().manual_seed(2)))
    result = {
        "multiple": host.latent_multiple,
        "latent": list(shape),
        "losses": [step.loss for step in steps],
        "learnt": bool((learnt.vectors["clip_l"] != start.vectors["clip_l"]).all()),
        "sample": list(made.shape),
        "frames": list(frames.shape),
        "range": [float(made.min()), float(made.max())],
    }
print(json.dumps(result))
