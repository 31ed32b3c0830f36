"""The toy world's model: a latent diffusion model of SD1's shape with small sizes, and its file in LDM's keys."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from textinv_core.hosts.pipelines import byte_letters

WIDTH = 96  # of the UNet, which has a single resolution, and of text vectors unless told otherwise
TOKENS = 48  # a prompt's window, start and end included
LATENT = 8  # cells a side, of 8 pixels each

UNET = {
    "sample_size": LATENT,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (WIDTH,),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,  # heads; diffusers keeps this name for them
}
# LDM's norms have 32 groups. With one channel a group a flat colour's level is lost, and is learnt badly if at all.
VAE = {
    "sample_size": 64,
    "block_out_channels": (64,) * 4,
    "layers_per_block": 0,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.18215,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


# The tokenizer: CLIP's, with merges for the world's own words


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of a word of plain letters."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = [(ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairwise(pieces))]
        rank, i = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return pieces
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def vocabulary(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocab and merges, such that each of `words` is one token."""
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        # A merge of a rank above all others changes no word that is one token already.
        while len(pieces := _split(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    letters = byte_letters()
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in ranks]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, list(ranks)


def write_tokenizer(folder: Path, words: list[str]) -> None:
    """A folder that transformers' CLIPTokenizer and ComfyUI read."""
    vocab, merges = vocabulary(words)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    facts = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n")


def text_config(words: list[str], width: int = WIDTH) -> CLIPTextConfig:
    size = len(vocabulary(words)[0])
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
        projection_dim=width,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def text_encoder(words: list[str], width: int = WIDTH) -> CLIPTextModel:
    return CLIPTextModel(text_config(words, width))


def unet(text_width: int = WIDTH) -> UNet2DConditionModel:
    return UNet2DConditionModel(**{**UNET, "cross_attention_dim": text_width})


def vae() -> AutoencoderKL:
    return AutoencoderKL(**VAE)


def write_configs(folder: Path, words: list[str], text_width: int = WIDTH) -> None:
    """A pipeline's folder in diffusers' layout, without weights: what describes the single file."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, config in {
        "unet": {**UNET, "cross_attention_dim": text_width},
        "vae": VAE,
        "scheduler": SCHEDULER,
    }.items():
        (folder / name).mkdir(exist_ok=True)
        file = folder / name / ("scheduler_config.json" if name == "scheduler" else "config.json")
        file.write_text(json.dumps({"_class_name": index[name][1], **config}, indent=2) + "\n")
    (folder / "text_encoder").mkdir(exist_ok=True)
    told = text_config(words, text_width).to_diff_dict()
    told = {"architectures": ["CLIPTextModel"], **{k: v for k, v in told.items() if k != "transformers_version"}}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(told, indent=2) + "\n")
    write_tokenizer(folder / "tokenizer", words)


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULER)


# The file in LDM's keys

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_PLACES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _ldm_unet_key(key: str) -> str:
    place = next(place for place in _UNET_PLACES if key.startswith(place + "."))
    rest = key[len(place) + 1 :]
    if ".resnets." in place:
        part, _, kind = rest.rpartition(".")
        rest = f"{_RESNET[part]}.{kind}"
    return f"model.diffusion_model.{_UNET_PLACES[place]}.{rest}"


def _ldm_vae(key: str, value: Tensor) -> tuple[str, Tensor]:
    side, *rest = key.split(".")
    if rest[0] in ("down_blocks", "up_blocks"):
        # LDM counts the decoder's levels from the finest, diffusers in the order they run in.
        level = int(rest[1]) if side == "encoder" else 3 - int(rest[1])
        kind = {"resnets": "block", "downsamplers": "downsample", "upsamplers": "upsample"}[rest[2]]
        inner = [rest[3], *rest[4:]] if kind == "block" else rest[4:]
        rest = ["down" if side == "encoder" else "up", str(level), kind, *inner]
    elif rest[:2] == ["mid_block", "resnets"]:
        rest = ["mid", f"block_{int(rest[2]) + 1}", *rest[3:]]
    elif rest[:2] == ["mid_block", "attentions"]:
        inner = ".".join(rest[3:-1])
        rest = ["mid", "attn_1", _VAE_ATTENTION[inner], rest[-1]]
        if rest[-1] == "weight" and inner != "group_norm":
            value = value[:, :, None, None]  # LDM's are convolutions
    name = ".".join([side, *rest]).replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    return f"first_stage_model.{name}", value


def ldm_state(unet: nn.Module, vae: nn.Module, text: nn.Module) -> dict[str, Tensor]:
    """All weights in the keys of LDM's checkpoints, in half precision."""
    state = {_ldm_unet_key(key): value for key, value in unet.state_dict().items()}
    state |= dict(_ldm_vae(key, value) for key, value in vae.state_dict().items())
    for key, value in text.state_dict().items():
        if not key.endswith("position_ids"):
            state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    return {key: value.detach().half().contiguous().clone() for key, value in state.items()}


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, std: float) -> None:
    """Change encoder and decoder so that latents that had `std` have that of SD's, 1 / scaling_factor."""
    factor = 1 / (std * VAE["scaling_factor"])
    channels = vae.config["latent_channels"]
    vae.quant_conv.weight[:channels] *= factor
    vae.quant_conv.bias[:channels] *= factor
    vae.quant_conv.bias[channels:] += 2 * torch.tensor(factor).log()  # the log of the variance
    vae.post_quant_conv.weight /= factor
