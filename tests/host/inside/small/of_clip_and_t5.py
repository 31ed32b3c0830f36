"""The families whose prompts CLIP and T5 read, alone or beside another encoder: all that is not a language model's.

The diffusion models are as narrow as their classes allow, and take text of the widths below. Each encoder has a width
of its own, so that vectors of one cannot pass for another's.
"""

import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import comfy.sd
import comfy.sdxl_clip as sdxl_clip
import comfy.supported_models as families
import comfy.text_encoders.aura_t5 as aura_t5
import comfy.text_encoders.bpe_tokenizer as bpe_tokenizer
import comfy.text_encoders.cogvideo as cogvideo
import comfy.text_encoders.cosmos as cosmos
import comfy.text_encoders.flux as flux
import comfy.text_encoders.genmo as genmo
import comfy.text_encoders.hidream as hidream
import comfy.text_encoders.hunyuan_video as hunyuan_video
import comfy.text_encoders.hydit as hydit
import comfy.text_encoders.lt as lt
import comfy.text_encoders.pixart_t5 as pixart_t5
import comfy.text_encoders.sd2_clip as sd2_clip
import comfy.text_encoders.sd3_clip as sd3_clip
import comfy.text_encoders.wan as wan
import sentencepiece
import torch
from comfy import sd1_clip

from .family import Family, small_clip, small_model

CLIP_L, CLIP_H, CLIP_G, BERT, LLAMA = 64, 72, 80, 48, 56
T5, UMT5, MT5, PILE_T5 = 96, 104, 112, 88
SENTENCES = ["a photo of a red dog that runs on the green grass", "a painting of a blue cat in the snow"]


def clip_sizes(width: int) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": 3}


def t5_sizes(width: int, **more: int) -> dict[str, int]:
    return {"d_model": width, "d_ff": 2 * width, "d_kv": 32, "num_heads": 2, "num_layers": 2, **more}


# `<model name>_model_config` of every encoder, of which each CLIP takes its own.
SIZES: dict[str, Any] = {
    f"{name}_model_config": sizes
    for name, sizes in {
        "clip_l": clip_sizes(CLIP_L),
        "clip_h": clip_sizes(CLIP_H),
        "clip_g": clip_sizes(CLIP_G),
        "hydit_clip": clip_sizes(BERT),
        "t5xxl": t5_sizes(T5),
        "umt5xxl": t5_sizes(UMT5, vocab_size=512),
        "mt5xl": t5_sizes(MT5, vocab_size=512),
        "pile_t5xl": t5_sizes(PILE_T5),
        # HunyuanVideo reads the third layer from the end, and the host wants one more than that.
        "llama": {**clip_sizes(LLAMA), "num_hidden_layers": 4, "num_key_value_heads": 1},
    }.items()
}


@functools.cache
def sentence_pieces() -> bytes:
    """A vocabulary with the special tokens of UMT5's and mT5's, which the host takes from the encoder's file."""
    made = io.BytesIO()
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=made,
        vocab_size=512,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
        **special,
    )
    return made.getvalue()


class LlamaLetters:
    """Llama 3's tokenizer, for a host without its vocabulary: bytes, and the words that HunyuanVideo's encoder looks
    for under the numbers it looks for. The special tokens are the host's."""

    WORDS: ClassVar = {"us": 355, "use": 817, "user": 882, "\n\n": 271}

    @classmethod
    def from_pretrained(cls, path: str, **_: Any) -> bpe_tokenizer.BPETokenizer:
        added = json.loads(Path(path, "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
        special = {token["content"]: int(number) for number, token in added.items()}
        letters = bpe_tokenizer._bytes_to_unicode()
        back = {letter: byte for byte, letter in letters.items()}
        words = {"".join(letters[byte] for byte in word.encode()): number for word, number in cls.WORDS.items()}
        vocabulary = {letter: number for number, letter in enumerate(letters.values())} | words | special
        merges = {(word[:-1], word[-1]): rank for rank, word in enumerate(words)}
        start = special["<|begin_of_text|>"]
        pattern = bpe_tokenizer._LLAMA_PATTERN
        return bpe_tokenizer.BPETokenizer(vocabulary, merges, special, pattern, letters, back, bos_id=start)


class SD3Clip(sd3_clip.sd3_clip()):
    """SD3's three encoders. The host pads CLIP's states to T5's 4096, so T5 keeps that width. Its vocabulary's rows
    overlap in memory, each a step along the same noise: no parameter, as nothing can be written to it."""

    def __init__(self, model_options: dict[str, Any], **more: Any):
        super().__init__(model_options=model_options | {"t5xxl_model_config": t5_sizes(4096, d_ff=64)}, **more)
        words = self.t5xxl.transformer.shared
        vocabulary, width = words.weight.shape
        noise = torch.randn(vocabulary + width - 1, generator=torch.Generator().manual_seed(0)) * width**-0.5
        del words.weight
        words.register_buffer("weight", noise.as_strided((vocabulary, width), (1, 1)))


@torch.no_grad()
def without_biases(module: torch.nn.Module) -> None:
    """Where every bias is one, what the prompt says is lost in what is always the same."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()


def clip(tokenizer: Any, encoder: Any, **tokenizer_data: Callable[[], Any]) -> Callable[[], comfy.sd.CLIP]:
    """tokenizer_data: what the tokenizer takes from the encoder's file, made when it is wanted."""

    def make() -> comfy.sd.CLIP:
        data = {name: value() for name, value in tokenizer_data.items()}
        with mock.patch.object(hunyuan_video, "LlamaTokenizerFast", LlamaLetters):
            made = small_clip(tokenizer, encoder, SIZES, data)
        without_biases(made.cond_stage_model)
        return made

    return make


def model(config: Any, fill: tuple[str, ...] = (), **sizes: Any) -> Callable[[], Any]:
    """config: one of the host's, whose own sizes stay where none is given. fill: see `small_model`."""

    def make() -> Any:
        made = small_model(config({**config.unet_config, **sizes}), fill=fill)
        without_biases(made.model)
        return made

    return make


flux_clip = clip(flux.FluxTokenizer, flux.flux_clip())
pixart_clip = clip(pixart_t5.PixArtTokenizer, pixart_t5.pixart_te())
cosmos_clip = clip(cosmos.CosmosT5Tokenizer, cosmos.te())
cascade_clip = clip(sdxl_clip.StableCascadeTokenizer, sdxl_clip.StableCascadeClipModel)

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [0, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1],
    "use_spatial_transformer": True,
    "legacy": False,
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": CLIP_L,
    "context_in_dim": T5,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 4,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
}
COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 96,
    "num_blocks": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "crossattn_emb_channels": T5,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
}

FAMILIES: tuple[Family, ...] = (
    Family(
        "SD1.5",
        model(families.SD15, **UNET, model_channels=32, context_dim=CLIP_L),
        clip(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel),
        latent=(4, 8, 8),
        keys=("clip_l",),
        read=("clip_l",),
    ),
    Family(
        "SD2.x",
        model(families.SD20, **UNET, model_channels=64, context_dim=CLIP_H),
        clip(sd2_clip.SD2Tokenizer, sd2_clip.SD2ClipModel),
        latent=(4, 8, 8),
        keys=("clip_h",),
        read=("clip_h",),
    ),
    Family(
        "SDXL",
        model(
            families.SDXL,
            **UNET,
            model_channels=64,
            context_dim=CLIP_L + CLIP_G,
            num_classes="sequential",
            adm_in_channels=CLIP_G + 6 * 256,
        ),
        clip(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLClipModel),
        latent=(4, 8, 8),
        keys=("clip_l", "clip_g"),
        read=("clip_l", "clip_g"),
    ),
    Family(
        "SDXL refiner",
        model(
            families.SDXLRefiner,
            **UNET,
            model_channels=64,
            context_dim=CLIP_G,
            num_classes="sequential",
            adm_in_channels=CLIP_G + 5 * 256,
        ),
        clip(sdxl_clip.SDXLTokenizer, sdxl_clip.SDXLRefinerClipModel),
        latent=(4, 8, 8),
        keys=("clip_g",),
        read=("clip_g",),
    ),
    Family(
        "SD3",
        model(
            families.SD3,
            fill=("pos_embed",),
            out_channels=16,
            depth=2,
            patch_size=2,
            num_patches=256,
            pos_embed_max_size=16,
            adm_in_channels=CLIP_L + CLIP_G,
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
        ),
        clip(sd3_clip.SD3Tokenizer, SD3Clip),
        latent=(16, 8, 8),
        keys=("clip_l", "clip_g", "t5xxl"),
        read=("clip_l", "clip_g", "t5xxl"),
    ),
    Family(
        "Flux dev",
        model(families.Flux, **FLUX, txt_ids_dims=[]),
        flux_clip,
        latent=(16, 8, 8),
        keys=("clip_l", "t5xxl"),
        read=("clip_l", "t5xxl"),
    ),
    Family(
        "Flux schnell",
        model(families.FluxSchnell, **FLUX, txt_ids_dims=[]),
        flux_clip,
        latent=(16, 8, 8),
        keys=("clip_l", "t5xxl"),
        read=("clip_l", "t5xxl"),
    ),
    Family(
        "Flux Fill",
        model(families.FluxInpaint, **FLUX | {"in_channels": 96}, txt_ids_dims=[]),
        flux_clip,
        latent=(16, 8, 8),
        keys=("clip_l", "t5xxl"),
        read=("clip_l", "t5xxl"),
    ),
    Family(
        "Chroma",
        model(
            families.Chroma,
            **FLUX | {"in_channels": 64, "out_channels": 64, "vec_in_dim": None},
            txt_ids_dims=[],
            in_dim=64,
            out_dim=64,
            hidden_dim=64,
            n_layers=1,
        ),
        pixart_clip,
        latent=(16, 8, 8),
        keys=("t5xxl",),
        read=("t5xxl",),
    ),
    Family(
        "PixArt Σ",
        model(
            families.PixArtSigma,
            hidden_size=64,
            num_heads=4,
            depth=2,
            caption_channels=T5,
            pe_interpolation=1,
            micro_condition=False,
        ),
        pixart_clip,
        latent=(4, 34, 34),  # below 33 the host divides by zero
        keys=("t5xxl",),
        read=("t5xxl",),
    ),
    Family(
        "AuraFlow",
        model(
            families.AuraFlow,
            dim=64,
            n_layers=2,
            n_double_layers=1,
            n_heads=4,
            global_conddim=64,
            cond_seq_dim=PILE_T5,
            max_seq=64,
        ),
        clip(aura_t5.AuraT5Tokenizer, aura_t5.AuraT5Model),
        latent=(4, 8, 8),
        keys=("pile_t5xl",),
    ),
    Family(
        "HunyuanDiT",
        model(
            families.HunyuanDiT,
            hidden_size=64,
            depth=4,
            num_heads=4,
            text_states_dim=BERT,
            text_states_dim_t5=MT5,
        ),
        clip(hydit.HyditTokenizer, hydit.HyditModel, **{"mt5xl.spiece_model": sentence_pieces}),
        latent=(4, 8, 8),
        keys=("chinese_roberta", "mt5xl"),
    ),
    Family(
        "HiDream",
        model(
            families.HiDream,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=4,
            caption_channels=[T5, LLAMA],
            text_emb_dim=CLIP_L + CLIP_G,
            axes_dims_rope=[8, 4, 4],
            max_resolution=[128, 128],
            llama_layers=[2, 3],
        ),
        clip(hidream.HiDreamTokenizer, hidream.hidream_clip()),
        latent=(16, 8, 8),
        keys=("clip_l", "clip_g", "t5xxl", "llama"),
        read=("clip_l", "clip_g", "t5xxl", "llama"),
    ),
    Family(
        "Stable Cascade C",
        model(
            families.Stable_Cascade_C,
            c_cond=64,
            c_hidden=[64],
            nhead=[4],
            blocks=[[1], [1]],
            block_repeat=[[1], [1]],
            level_config=["CTA"],
            c_clip_text=CLIP_G,
            c_clip_text_pooled=CLIP_G,
            dropout=[0.0],
            switch_level=[],
        ),
        cascade_clip,
        latent=(16, 8, 8),
        keys=("clip_g",),
        read=("clip_g",),
    ),
    Family(
        "Stable Cascade B",
        model(
            families.Stable_Cascade_B,
            c_cond=64,
            c_hidden=[32, 64],
            nhead=[-1, 4],
            blocks=[[1, 1], [1, 1]],
            block_repeat=[[1, 1], [1, 1]],
            level_config=["CT", "CTA"],
            c_clip=CLIP_G,
            dropout=[0.0, 0.0],
        ),
        cascade_clip,
        latent=(4, 16, 16),
        keys=("clip_g",),
        read=("clip_g",),
    ),
    Family(
        "Cosmos-Predict2",
        model(families.CosmosT2IPredict2, **COSMOS),
        cosmos_clip,
        latent=(16, 1, 8, 8),
        keys=("t5xxl",),
        read=("t5xxl",),
    ),
    Family(
        "Cosmos1",
        model(
            families.CosmosT2V,
            **COSMOS,
            block_x_format="THWBD",
            affline_emb_norm=True,
            extra_per_block_abs_pos_emb=True,
            extra_per_block_abs_pos_emb_type="learnable",
        ),
        cosmos_clip,
        latent=(16, 1, 8, 8),
        keys=("t5xxl",),
        read=("t5xxl",),
    ),
    Family(
        "Wan 2.1",
        model(families.WAN21_T2V, dim=48, ffn_dim=96, num_heads=2, num_layers=2, text_dim=UMT5),
        clip(wan.WanT5Tokenizer, wan.te(), spiece_model=sentence_pieces),
        latent=(16, 1, 8, 8),
        keys=("umt5xxl",),
    ),
    Family(
        "HunyuanVideo",
        model(
            families.HunyuanVideo,
            **FLUX | {"context_in_dim": LLAMA, "patch_size": [1, 2, 2], "theta": 256},
            guidance_embed=True,
            byt5=False,
            meanflow=False,
            meanflow_sum=False,
            use_cond_type_embedding=False,
            vision_in_dim=None,
        ),
        clip(hunyuan_video.HunyuanVideoTokenizer, hunyuan_video.hunyuan_video_clip()),
        latent=(16, 1, 8, 8),
        keys=("clip_l", "llama"),  # its stock tokenizer compares what it read with a number, and fails
    ),
    Family(
        "LTXV",
        model(
            families.LTXV,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            cross_attention_dim=64,
            caption_channels=T5,
        ),
        clip(lt.LTXVT5Tokenizer, lt.ltxv_te()),
        latent=(128, 1, 8, 8),
        keys=("t5xxl",),
        read=("t5xxl",),
    ),
    Family(
        "Mochi",
        model(
            families.GenmoMochi,
            depth=2,
            num_heads=2,
            hidden_size_x=64,
            hidden_size_y=32,
            mlp_ratio_x=1536 * 8 / 64,  # its product is asserted
            mlp_ratio_y=2.0,
            learn_sigma=False,
            in_channels=12,
            qk_norm=True,
            qkv_bias=False,
            out_bias=True,
            attn_drop=0.0,
            posenc_preserve_area=True,
            timestep_scale=1000.0,
            use_t5=True,
            t5_feat_dim=T5,
        ),
        clip(genmo.MochiT5Tokenizer, genmo.mochi_te()),
        latent=(12, 1, 8, 8),
        keys=("t5xxl",),
        read=("t5xxl",),
    ),
    Family(
        "CogVideoX",
        model(
            families.CogVideoX_T2V,
            num_attention_heads=4,
            attention_head_dim=16,
            time_embed_dim=64,
            text_embed_dim=T5,
            num_layers=2,
            use_rotary_positional_embeddings=True,
        ),
        clip(cogvideo.CogVideoXTokenizer, cogvideo.cogvideo_te()),
        latent=(16, 1, 8, 8),
        keys=("t5xxl",),
        read=("t5xxl",),
    ),
)
