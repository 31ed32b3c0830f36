"""What the ComfyUI host makes of given pictures, noise, prompts and vectors, on checkpoints that fit diffusers too.

parity.py CHECKPOINT FOLDER

CHECKPOINT: one that make_checkpoints.py made; its UNet and VAE are made anew. FOLDER has inputs.safetensors, and gets
model.safetensors and comfy.safetensors. Prints the prompts that `hosts.tokens` and the host read differently.
"""

import json
import random
from pathlib import Path

import pack
import torch

pack.load_pack()

import comfy.ldm.models.autoencoder  # noqa: E402
import make_checkpoints  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.hosts.comfy_text import tokenizer_with  # noqa: E402
from textinv.textinv_core.hosts.tokens import tokens, windows  # noqa: E402
from textinv.textinv_core.training.objective import prediction_losses  # noqa: E402

# The real families' blocks, all of them as narrow as the first: those of make_checkpoints.py diffusers cannot describe.
FOUR_LEVELS = {
    "channel_mult": [1, 1, 1, 1],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
UNETS = {
    "sd15": FOUR_LEVELS,
    "sd2v": FOUR_LEVELS,
    "sdxl": {"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10},
}
PIECES = ["embedding:my-dog", "embedding:other", "embedding:my-dog,", "a cat", " ", " ", ", ", "(", ":1.2)", ")", "[x"]
PIECES += ["wow!!! ", "\\(so\\) ", "very big " * 5, "tiny " * 20, "日本語", "\n"]


def make_checkpoint(source: Path, target: Path):
    family, narrow = make_checkpoints.CHECKPOINTS[source.stem]
    more = {"image_size": 32, "in_channels": 4, "out_channels": 4, "use_spatial_transformer": True, "legacy": False}
    config = family({**more, "use_temporal_attention": False, **narrow, **UNETS[source.stem]})
    weights = {
        key: weight
        for key, weight in load_file(source).items()
        if not key.startswith(("model.diffusion_model.", "first_stage_model.decoder."))
    }
    weights |= config.process_unet_state_dict_for_saving(make_checkpoints.unet(config))
    shape = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    shape |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=shape, embed_dim=4)
    for key, size in make_checkpoints.shapes(vae).items():
        if key.startswith("decoder."):
            weights["first_stage_model." + key] = make_checkpoints.fan_in("first_stage_model." + key, size)
    save_file({key: weight.contiguous() for key, weight in weights.items()}, target)


def different_windows(clip) -> list:
    """Prompts of which some text encoder is fed something else than `hosts.tokens` makes of them."""
    generator = random.Random(0)
    prompts = ["", "a cat", "embedding:my-dog", "tiny " * 200, "embedding:my-dog " * 40]
    prompts += ["".join(generator.choices(PIECES, k=generator.randint(1, 30))) for _ in range(400)]
    wrong = []
    encoders = ComfyHost(clip).encoders
    for encoder in encoders.values():
        vectors = torch.arange(3)[:, None].repeat(1, encoder.width).float()
        known = tokenizer_with(clip, encoders, lambda _, name, vectors=vectors: vectors if name == "my-dog" else None)
        known = getattr(known, encoder.attribute)
        own = encoder.tokenizer
        for prompt in prompts:
            groups = tokens(
                prompt,
                lambda text, own=own: own.tokenizer(text, add_special_tokens=False).input_ids,
                lambda name, vectors=vectors: vectors if name == "my-dog" else None,
            )
            ours = windows(groups, own.max_length, own.start_token, own.end_token, own.pad_token)
            theirs = known.tokenize_with_weights(prompt)
            if plain(ours) != plain(theirs):
                wrong.append([encoder.attribute, prompt])
    return wrong


def plain(windows) -> list:
    """So that they compare: -1 - i for vector i."""
    return [[(-1 - int(t[0]) if torch.is_tensor(t) else t, weight) for t, weight in window] for window in windows]


def main():
    source, folder = map(Path, pack.ARGS)
    make_checkpoint(source, folder / "model.safetensors")
    model, clip, vae = pack.load_checkpoint(folder / "model.safetensors")
    host = ComfyHost(clip, model, vae, "fp32")
    wrong = different_windows(clip)
    given = load_file(folder / "inputs.safetensors")
    with safe_open(folder / "inputs.safetensors", "pt") as file:
        cases = json.loads(file.metadata()["cases"])
    with torch.inference_mode():
        latents = host.encode(list(given["images"]))
    latents = [latent.clone() for latent in latents]
    made = {"latents": torch.stack(latents)}
    with host.trainable(latents[0], len(latents)) as trainable:
        for case, prompts in cases.items():
            vectors = {key: given[f"vectors {key}"].clone().requires_grad_() for key in host.widths}
            lookups = [{"my-dog": lambda key, occurrence, v=vectors: v[key] * (1 + occurrence)}] * len(prompts)
            conditions = trainable.conditions(prompts, lookups, latents)
            loss = prediction_losses(trainable, made["latents"], given["gaussian"], given["t"], conditions).mean()
            gradients = torch.autograd.grad(loss, list(vectors.values()))
            made[f"{case} loss"] = loss.detach()
            made |= {f"{case} {key}": gradient for key, gradient in zip(vectors, gradients, strict=True)}
    save_file(made, folder / "comfy.safetensors")
    print(json.dumps(wrong))


main()
