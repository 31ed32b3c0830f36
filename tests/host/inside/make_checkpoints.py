"""Small checkpoints with random weights, in the single-file layout that `CheckpointLoaderSimple` reads.

    python make_checkpoints.py FOLDER --cpu [name ...]

Names and shapes come from ComfyUI's own classes, the layout from its own conversions for saving, so that the loader
meets what it would meet in a real file: nothing missing, the family recognised. Widths that a family is recognised by
are real, and so are the text encoders, which the loader cannot take smaller; the UNet has few blocks.

Random weights train and sample like a model's only if signals keep their size on the way: branches are scaled by
their fan-in, token embeddings are as small as the real ones (0.014, so that learning rates mean what they mean for a
real model), and the text reaches the UNet's output strongly enough for a single token to show.
"""

# ruff: noqa: I001 -- `pack` comes before ComfyUI, which reads the command line when it is imported
import math
import sys
import zlib
from pathlib import Path

from pack import ARGS

import comfy.ldm.models.autoencoder
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch

SD1 = {
    "model_channels": 320,
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 0, 1, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
}
# The loader tells v from eps by a weight in the twelfth output block, so there must be twelve.
SD2 = {
    **SD1,
    "channel_mult": [1, 1, 1, 1],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 0, 1, 0, 0, 0, 0, 0],
    "transformer_depth_output": [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    "context_dim": 1024,
    "use_linear_in_transformer": True,
}
# SDXL is recognised by exactly these depths on the way down; on the way up there may be less.
SDXL = {
    **SD1,
    "channel_mult": [1, 1, 1],
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 1, 0, 0, 0, 0, 1],
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}
CHECKPOINTS = {
    "sd15": (comfy.supported_models.SD15, SD1),
    "sd15_inpaint": (comfy.supported_models.SD15, {**SD1, "in_channels": 9}),
    "sd2v": (comfy.supported_models.SD20, SD2),
    "sdxl": (comfy.supported_models.SDXL, SDXL),
}


def shapes(module):
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def normal(name, shape, std, mean=0.0):
    """Random numbers of their own for every tensor: a change to one part leaves the others as they were."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator).mul_(std).add_(mean).half()


def fan_in(name, shape, gain=1.0):
    """Unit variance in, `gain`² out. Vectors are norms' weights, about 1, or biases, about 0."""
    if len(shape) < 2:
        return normal(name, shape, 0.1, float(name.endswith("weight")))
    return normal(name, shape, gain / math.sqrt(math.prod(shape[1:])))


def unet(config):
    model = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel(
        **{k: v for k, v in config.unet_config.items() if k != "use_temporal_attention"},
        dtype=torch.float16,
        device="meta",
        operations=comfy.ops.disable_weight_init,
    )
    gains = {
        "attn2.to_q": 2.0,  # attention that chooses: a token is more than one part in 77
        "attn2.to_k": 2.0,
        "attn2.to_out": 4.0,
        "out.2": 1.6,  # after SiLU, which leaves 0.6 of a unit signal
    }
    weights = {}
    for name, shape in shapes(model).items():
        gain = next((g for part, g in gains.items() if part in name or name.startswith(part)), 1.0)
        weights[name] = fan_in(name, shape, gain)
    v = "output_blocks.11.1.transformer_blocks.0.norm1.bias"  # its spread is how the loader knows v prediction in SD2
    if v in weights:
        weights[v] = normal(v, weights[v].shape, 0.2)
    return weights


def text_encoder(config):
    """All CLIP encoders of the family, under the host's names (`clip_l.transformer.text_model. …`)."""
    model = config.clip_target().clip(device="meta", dtype=torch.float16)
    sizes = shapes(model)
    layers = {}
    for name in sizes:
        if ".layers." in name:
            encoder, rest = name.split(".", 1)
            layers[encoder] = max(layers.get(encoder, 0), int(rest.split(".layers.")[1].split(".")[0]) + 1)
    weights = {}
    for name, shape in sizes.items():
        encoder = name.split(".", 1)[0]
        if name.endswith("logit_scale"):
            weights[name] = torch.tensor(4.6055)
        elif "token_embedding" in name:
            weights[name] = normal(name, shape, 0.014)
        elif "position_embedding" in name:
            weights[name] = normal(name, shape, 0.005)
        elif name.endswith(("out_proj.weight", "fc2.weight")):
            # The stream grows evenly from the embeddings' 0.014 to 1, so that no layer drowns what came before it. Rows
            # without a mean: GELU's is the same for every token, and would soon be all that is left of them.
            growth = (1 / 0.014) ** (2 / layers[encoder])
            before = 0.014 * growth ** (int(name.split(".layers.")[1].split(".")[0]) / 2)
            share = 0.4 if "out_proj" in name else 1.8  # a token is to be heard above the average that attention gives
            weight = fan_in(name, shape, share * before * math.sqrt((growth - 1) / 2)).float()
            weights[name] = (weight - weight.mean(1, keepdim=True)).half()
        elif ".layers." in name and name.endswith(("out_proj.bias", "fc2.bias")):
            weights[name] = torch.zeros(shape, dtype=torch.float16)
        else:
            weights[name] = fan_in(name, shape)
    return weights


def vae(config):
    """The decoder a quarter as wide as the real one: the loader reads its width off the file, but not the encoder's."""
    shape = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3}
    shape |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        model = comfy.ldm.models.autoencoder.AutoencoderKL(
            ddconfig={**shape, "ch": 128}, decoder_ddconfig={**shape, "ch": 32}, embed_dim=4
        )
    spread = 1 / config.latent_format.scale_factor  # what the diffusion model wants to see as 1
    gains = {
        "encoder.conv_out": 1.6,
        "quant_conv": 1.4 * spread,
        "post_quant_conv": 1 / spread,
        "decoder.conv_out": 0.8,
    }
    return {
        name: fan_in("first_stage_model." + name, size, gains.get(name.rsplit(".", 1)[0], 1.0))
        for name, size in shapes(model).items()
    }


def checkpoint(family, unet_config):
    config = family({"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True,
                     "legacy": False, "use_temporal_attention": False, **unet_config})  # fmt: skip
    return {
        **config.process_unet_state_dict_for_saving(unet(config)),
        **config.process_clip_state_dict_for_saving(text_encoder(config)),
        **config.process_vae_state_dict_for_saving(vae(config)),
    }


def main():
    folder, *names = ARGS
    for name in names or CHECKPOINTS:
        path = Path(folder, f"{name}.safetensors")
        if path.exists():
            continue
        weights = {k: w.contiguous() for k, w in checkpoint(*CHECKPOINTS[name]).items()}
        part = path.with_suffix(".part")  # another session may be making or reading the same files
        comfy.utils.save_torch_file(weights, str(part))
        part.replace(path)
        print(f"{path.name}: {path.stat().st_size / 2**20:.0f} MiB", file=sys.stderr)


if __name__ == "__main__":
    main()
