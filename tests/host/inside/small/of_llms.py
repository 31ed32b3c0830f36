"""The families whose prompts a language model reads."""

import base64
import functools
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import comfy.ldm.anima.model as anima_model
import comfy.ops
import comfy.supported_models as supported
import comfy.text_encoders.anima as anima
import comfy.text_encoders.boogu as boogu
import comfy.text_encoders.ernie as ernie
import comfy.text_encoders.flux as flux
import comfy.text_encoders.gpt_oss as gpt_oss
import comfy.text_encoders.hidream_o1 as hidream_o1
import comfy.text_encoders.hunyuan_image as hunyuan_image
import comfy.text_encoders.hunyuan_video as hunyuan_video
import comfy.text_encoders.ideogram4 as ideogram4
import comfy.text_encoders.joyimage as joyimage
import comfy.text_encoders.kandinsky5 as kandinsky5
import comfy.text_encoders.krea2 as krea2
import comfy.text_encoders.llama as llama
import comfy.text_encoders.longcat_image as longcat_image
import comfy.text_encoders.lt as lt
import comfy.text_encoders.lumina2 as lumina2
import comfy.text_encoders.mage_flow as mage_flow
import comfy.text_encoders.minimax as minimax
import comfy.text_encoders.newbie as newbie
import comfy.text_encoders.omnigen2 as omnigen2
import comfy.text_encoders.ovis as ovis
import comfy.text_encoders.pixeldit as pixeldit
import comfy.text_encoders.qwen3vl as qwen3vl
import comfy.text_encoders.qwen_image as qwen_image
import comfy.text_encoders.qwen_vl as qwen_vl
import comfy.text_encoders.z_image as z_image
import sentencepiece
import tokenizers
import torch

from .family import Family, small_clip, small_model

WIDTH = 64  # of all language models' hidden states
LAYERS = 3
SMALL_CLIP_L = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
SMALL_BYT5 = {"num_layers": 1, "d_ff": 64, "num_heads": 2, "d_kv": 32}  # its width is written into the models
SMALL_VOCABULARY = 2048  # for the tokenizers that are made here


def _language_model(layers: int = LAYERS, **more: int) -> dict[str, int]:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    return {"num_hidden_layers": layers, **sizes, **more}


def _model(kind: Any, **sizes: Any) -> Any:
    config = kind({**kind.unet_config, **sizes})
    config.unet_config.update(sizes)  # `unet_extra_config` came over them
    return small_model(config)


@contextmanager
def _small_eyes() -> Iterator[None]:
    """The towers for images, whose sizes no option reaches, and which no test of prompts needs."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "deepstack_visual_indexes": [0]}
    tower = qwen_vl.Qwen2VLVisionTransformer
    small = {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "num_layers": 1}
    with ExitStack() as patches:
        patches.enter_context(
            mock.patch.object(qwen_vl, "Qwen2VLVisionTransformer", lambda **a: tower(**{**a, **small}))
        )
        patches.enter_context(mock.patch.dict(qwen3vl.QWEN3VL_VISION, dict.fromkeys(qwen3vl.QWEN3VL_VISION, vision)))
        patches.enter_context(mock.patch.dict(qwen3vl.QWEN3VL_VISION_COMMON, num_heads=2, num_position_embeddings=16))
        yield


def _clip(tokenizer: Any, clip: Any, name: str, data: Any = dict, more: Mapping[str, Any] | None = None, **sizes: Any):
    """name: of the language model among the host's options. data: makes the tokenizer's data. more: further options."""
    options = {f"{name}_model_config": _language_model(**sizes), **(more or {})}
    with _small_eyes():
        return small_clip(tokenizer, clip, options, data())


@functools.cache
def _tekken() -> dict[str, Any]:
    """What Mistral's checkpoints bring along, with single bytes for words and its special tokens' own numbers."""
    special = {
        1: "<s>",
        2: "</s>",
        3: "[INST]",
        4: "[/INST]",
        11: "<pad>",
        17: "[SYSTEM_PROMPT]",
        18: "[/SYSTEM_PROMPT]",
    }
    vocabulary = {
        "config": {"default_vocab_size": SMALL_VOCABULARY, "default_num_special_tokens": 1000},
        "vocab": [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)],
        "special_tokens": [{"rank": rank, "token_str": text} for rank, text in special.items()],
    }
    return {"tekken_model": json.dumps(vocabulary).encode()}


@functools.cache
def _spiece(**special: int) -> bytes:
    """A sentencepiece model that reads letters, and anything else by its bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over a lazy dog, " * 4]),
        model_writer=model,
        model_type="char",
        byte_fallback=True,
        vocab_size=4 + 256 + 29,
        hard_vocab_limit=False,
        minloglevel=2,
        **special,
    )
    return model.getvalue()


def _gemma_data() -> dict[str, bytes]:
    return {"spiece_model": _spiece(pad_id=0, eos_id=1, bos_id=2, unk_id=3)}


def _newbie_data() -> dict[str, bytes]:
    jina = _spiece(bos_id=0, pad_id=1, eos_id=2, unk_id=3)
    return {"gemma_spiece_model": _gemma_data()["spiece_model"], "jina_spiece_model": jina}


def _newbie_clip() -> Any:
    """Both encoders take the sizes of `_model_config`: as many as both know."""
    sizes = _language_model(num_attention_heads=4, vocab_size=SMALL_VOCABULARY)
    del sizes["num_key_value_heads"]
    return small_clip(newbie.NewBieTokenizer, newbie.te(), {"_model_config": sizes}, _newbie_data())


def _lens_data() -> dict[str, bytes]:
    """Whole words for the ones it wraps prompts in: by letters they would be more than the host lets it read."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|start|>", "<|message|>", "<|end|>", "<|channel|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=SMALL_VOCABULARY, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([gpt_oss._lens_render_chat("a dog")] * 2, trainer)
    return {"tokenizer_json": tokenizer.to_str().encode()}


class _LensOperations(comfy.ops.manual_cast):
    """With the experts' weights made at once; the host's are when a file is loaded."""

    class MoEExperts(comfy.ops.mixed_precision_ops({}, torch.float32).MoEExperts):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.weight = torch.nn.Parameter(torch.empty(self._orig_shape), requires_grad=False)


def _lens_clip() -> Any:
    sizes = {**_language_model(), "head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2}
    options = {"gpt_oss_config": sizes, "selected_layers": (1, 2), "custom_operations": _LensOperations}
    return small_clip(gpt_oss.LensTokenizer, gpt_oss.lens_te(), options, _lens_data())


def _ltxav_clip() -> Any:
    """The encoder takes its sizes of `_model_config`."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes = _language_model(vocab_size=SMALL_VOCABULARY)
    with mock.patch.dict(llama.GEMMA3_VISION_CONFIG, vision):
        clip = lt.ltxav_te(video_projection_dim=WIDTH)
        return small_clip(lt.LTXAVGemmaTokenizer, clip, {"_model_config": sizes}, _gemma_data())


def _minimax() -> Any:
    model = _model(supported.MiniMaxH3, **_MINIMAX)
    frequencies = model.model.diffusion_model.rope.inv_freq  # of the weights' file
    frequencies.copy_(10000.0 ** -(torch.arange(len(frequencies)) / len(frequencies)))
    return model


def _choosing(kind: Any, factor: float, **sizes: Any) -> Any:
    """A model whose attention chooses: of the many tokens it gets, nearly all are the same for any prompt."""
    model = _model(kind, **sizes)
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if re.search(r"\b(query|key|q|k)_norm\.", name):
                weight.mul_(factor)
    return model


def _anima() -> Any:
    """Its adapter to the language model has no sizes among the model's."""
    small = {"source_dim": WIDTH, "target_dim": WIDTH, "model_dim": WIDTH, "num_layers": 1, "num_heads": 2}
    with mock.patch.object(anima_model, "LLMAdapter", functools.partial(anima_model.LLMAdapter, **small)):
        return _model(supported.Anima, **_PREDICT2)


_qwen25 = functools.partial(_clip, name="qwen25_7b")
_qwen3vl_4b = functools.partial(_clip, name="qwen3vl_4b")
_qwen3vl_8b = functools.partial(_clip, name="qwen3vl_8b")
_mistral = functools.partial(_clip, data=_tekken, vocab_size=SMALL_VOCABULARY)
_gemma = functools.partial(_clip, name="gemma2_2b", data=_gemma_data, vocab_size=SMALL_VOCABULARY)

_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": None,
    "context_in_dim": WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [1, 2],
}
_FLUX2 = {
    **_FLUX,
    "in_channels": 128,
    "out_channels": 128,
    "context_in_dim": 3 * WIDTH,  # three layers of the language model
    "mlp_ratio": 3.0,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
_LUMINA = {
    "patch_size": 2,
    "in_channels": 16,
    "cap_feat_dim": WIDTH,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 512, 512],
}
_LUMINA2 = {**_LUMINA, "dim": 64, "n_heads": 2, "n_kv_heads": 1, "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0}
_ZIMAGE = {
    **_LUMINA,
    "dim": 256,  # what its timesteps have, whatever this is
    "n_heads": 8,
    "n_kv_heads": 8,
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_QWEN_IMAGE = {
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (8, 12, 12),
}
_OMNIGEN = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "axes_dim_rope": (8, 12, 12),
    "timestep_scale": 1000.0,
}
_HUNYUAN = {
    "vec_in_dim": None,
    "context_in_dim": WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": True,
    "meanflow": False,
    "meanflow_sum": False,
}
_HUNYUAN_IMAGE = {
    "in_channels": 64,
    "out_channels": 64,
    "patch_size": [1, 1],
    "axes_dim": [16, 16],
    "vision_in_dim": None,
    "use_cond_type_embedding": False,
}
_HUNYUAN_VIDEO = {
    "in_channels": 65,  # the latent, a picture to start with, and its mask
    "out_channels": 32,
    "patch_size": [1, 1, 1],
    "axes_dim": [8, 12, 12],
    "vision_in_dim": 64,
    "use_cond_type_embedding": True,
}
_PREDICT2 = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 64,
    "crossattn_emb_channels": WIDTH,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": True,
    "use_adaln_lora": True,
    "adaln_lora_dim": 16,
    "num_blocks": 2,
    "num_heads": 2,
    "rope_h_extrapolation_ratio": 4.0,
    "rope_w_extrapolation_ratio": 4.0,
    "rope_enable_fps_modulation": False,
}
_KANDINSKY = {
    "in_text_dim": WIDTH,
    "in_text_dim2": SMALL_CLIP_L["hidden_size"],
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 128,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (8, 12, 12),
    "rope_scale_factor": (1.0, 1.0, 1.0),
}
_KREA = {"features": 64, "heads": 2, "kvheads": 1, "layers": 2, "txtdim": WIDTH, "txtheads": 2, "txtkvheads": 2}
_ERNIE = {
    "hidden_size": 96,
    "num_attention_heads": 3,
    "num_layers": 2,
    "ffn_hidden_size": 128,
    "text_in_dim": WIDTH,
    "rope_axes_dim": (8, 12, 12),
}
_IDEOGRAM = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "intermediate_size": 128,
    "adaln_dim": 64,
    "llm_features_dim": 13 * WIDTH,
    "mrope_section": [12, 10, 10],
}
_JOY = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "text_dim": WIDTH,
    "num_layers": 2,
    "rope_dim_list": [8, 12, 12],
}
_PIXELDIT = {
    "num_groups": 2,
    "hidden_size": 64,
    "pixel_hidden_size": 8,
    "pixel_attn_hidden_size": 32,
    "pixel_num_groups": 2,
    "patch_depth": 2,
    "pixel_depth": 1,
    "patch_size": 8,
    "txt_embed_dim": WIDTH,
}
_HIDREAM_O1 = {
    "text_config_overrides": {**_language_model(2), "head_dim": 32, "rope_dims": [6, 5, 5]},
    "vision_config_overrides": {"hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "depth": 1},
}
_LTXAV = {
    "cross_attention_dim": 64,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "audio_cross_attention_dim": 32,
    "audio_attention_head_dim": 16,
    "audio_num_attention_heads": 2,
    "connector_attention_head_dim": 32,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
    "caption_channels": WIDTH,
    "num_layers": 2,
}
_MINIMAX = {
    "hidden_size": 96,  # not the text's, or the model takes that for its own
    "num_layers": 2,
    "token_refiner_num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ffn_hidden_size": 128,
    "text_dim": WIDTH,
    "time_embed_hidden_size": 96,
    "time_embed_dim": 48,
    "rope_inv_freq_len": 4,
}
_LENS = {
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "enc_hidden_dim": WIDTH,
    "axes_dims_rope": (8, 12, 12),
    "selected_layer_index": (0, 1),
}


def _family(
    name: str,
    model: Any,
    clip: Any,
    latent: tuple[int, ...],
    *keys: str,
    read: tuple[str, ...] | None = None,
) -> Family:
    """read: all of `keys`, unless it is given."""
    return Family(name, model, clip, latent, keys, keys if read is None else read)


_of = functools.partial

FAMILIES: tuple[Family, ...] = (
    _family(
        "Z-Image",
        _of(_model, supported.ZImage, **_ZIMAGE),
        _of(_clip, z_image.ZImageTokenizer, z_image.te(), "qwen3_4b"),
        (16, 8, 8),
        "qwen3_4b",
    ),
    _family(
        "Flux2 dev",
        _of(_choosing, supported.Flux2, 2.0, **{**_FLUX2, "guidance_embed": True}),
        _of(_mistral, flux.Flux2Tokenizer, flux.flux2_te(pruned=True), "mistral3_24b", layers=30),
        (128, 8, 8),
        "mistral3_24b",
    ),
    _family(
        "Flux2 Klein",
        _of(_model, supported.Flux2, **_FLUX2),
        _of(_clip, flux.KleinTokenizer, flux.klein_te(), "qwen3_4b", layers=28),
        (128, 8, 8),
        "qwen3_4b",
    ),
    _family(
        "Qwen-Image",
        _of(_model, supported.QwenImage, **_QWEN_IMAGE),
        _of(_qwen25, qwen_image.QwenImageTokenizer, qwen_image.te()),
        (16, 1, 8, 8),
        "qwen25_7b",
        read=(),
    ),
    _family(
        "Krea2",
        _of(_model, supported.Krea2, **_KREA),
        _of(_qwen3vl_4b, krea2.Krea2Tokenizer, krea2.te(), layers=36),
        (16, 1, 8, 8),
        "qwen3vl_4b",
    ),
    _family(
        "Lumina2",
        _of(_model, supported.Lumina2, **_LUMINA2),
        _of(_gemma, lumina2.LuminaTokenizer, lumina2.te()),
        (16, 8, 8),
        "gemma2_2b",
        read=(),
    ),
    _family(
        "Kandinsky5 Image",
        _of(_model, supported.Kandinsky5Image, **_KANDINSKY),
        _of(
            _qwen25,
            kandinsky5.Kandinsky5TokenizerImage,
            kandinsky5.te(),
            more={"clip_l_model_config": SMALL_CLIP_L},
        ),
        (16, 8, 8),
        "clip_l",
        "qwen25_7b",
        read=("clip_l",),
    ),
    _family(
        "Omnigen2",
        _of(_model, supported.Omnigen2, **_OMNIGEN, text_feat_dim=WIDTH),
        _of(_clip, omnigen2.Omnigen2Tokenizer, omnigen2.te(), "qwen25_3b"),
        (16, 8, 8),
        "qwen25_3b",
        read=(),
    ),
    _family(
        "Ernie",
        _of(_model, supported.ErnieImage, **_ERNIE),
        _of(_mistral, ernie.ErnieTokenizer, ernie.te(), "ministral3_3b"),
        (128, 8, 8),
        "mistral3_24b",  # not its encoder's name
    ),
    _family(
        "Anima",
        _anima,
        _of(_clip, anima.AnimaTokenizer, anima.te(), "qwen3_06b"),
        (16, 1, 8, 8),
        "qwen3_06b",
        read=(),  # its tokenizer reads the vectors for T5 too, of which the host wants whole numbers, and stops
    ),
    _family(
        "HunyuanImage 2.1",
        _of(_model, supported.HunyuanImage21, **_HUNYUAN, **_HUNYUAN_IMAGE),
        _of(
            _qwen25,
            hunyuan_image.HunyuanImageTokenizer,
            hunyuan_image.te(),
            more={"_model_config": SMALL_BYT5},
            layers=4,
        ),
        (64, 8, 8),
        "qwen25_7b",  # ByT5 reads only what stands in quotation marks
        read=(),
    ),
    _family(
        "Ovis",
        _of(_model, supported.FluxSchnell, **_FLUX, yak_mlp=True, txt_norm=True),
        _of(_clip, ovis.OvisTokenizer, ovis.te(), "qwen3_2b"),
        (16, 8, 8),
        "qwen3_2b",
        read=(),
    ),
    _family(
        "Ideogram4",
        _of(_model, supported.Ideogram4, **_IDEOGRAM),
        _of(_qwen3vl_8b, ideogram4.Ideogram4Tokenizer, ideogram4.te(), layers=36),
        (128, 8, 8),
        "qwen3vl_8b",
    ),
    _family(
        "Mage",
        _of(_model, supported.MageFlow, **_QWEN_IMAGE),
        _of(_qwen3vl_4b, mage_flow.MageFlowTokenizer, mage_flow.te()),
        (128, 8, 8),
        "qwen3vl_4b",
    ),
    _family(
        "Boogu",
        _of(_model, supported.Boogu, **_OMNIGEN, num_double_stream_layers=1, instruction_feat_dim=WIDTH),
        _of(_qwen3vl_8b, boogu.BooguTokenizer, boogu.te()),
        (16, 8, 8),
        "qwen3vl_8b",
    ),
    _family(
        "JoyImage",
        _of(_model, supported.JoyImage, **_JOY),
        _of(_qwen3vl_8b, joyimage.JoyImageTokenizer, joyimage.te()),
        (16, 1, 8, 8),
        "qwen3vl_8b",
    ),
    _family(
        "PixelDiT",
        _of(_model, supported.PixelDiTT2I, **_PIXELDIT),
        _of(_gemma, pixeldit.PixelDiTGemma2Tokenizer, pixeldit.pixeldit_te()),
        (3, 32, 32),
        "gemma2_2b",
        read=(),
    ),
    _family(
        "LongCat",  # its tokenizer does not look for embeddings
        _of(_model, supported.LongCatImage, **_FLUX),
        _of(_qwen25, longcat_image.LongCatImageTokenizer, longcat_image.te()),
        (16, 8, 8),
    ),
    _family(
        "NewBie",
        _of(_model, supported.Lumina2, **_LUMINA2, clip_text_dim=WIDTH),
        _newbie_clip,
        (16, 8, 8),
        "gemma3_4b",
        "jina_clip_2",
        read=(),
    ),
    _family(
        "HunyuanVideo 1.5",
        _of(_model, supported.HunyuanVideo15, **_HUNYUAN, **_HUNYUAN_VIDEO),
        _of(
            _qwen25,
            hunyuan_video.HunyuanVideo15Tokenizer,
            hunyuan_image.te(),
            more={"_model_config": SMALL_BYT5},
            layers=4,
        ),
        (32, 1, 8, 8),
        "qwen25_7b",
        read=(),
    ),
    _family(
        "HiDream-O1",  # its prompts are whole numbers, which the model itself reads
        _of(_model, supported.HiDreamO1, **_HIDREAM_O1),
        _of(_clip, hidream_o1.HiDreamO1Tokenizer, hidream_o1.HiDreamO1TE, "hidream_o1"),
        (3, 64, 64),
    ),
    _family(
        "LTXAV",
        _of(_choosing, supported.LTXAV, 3.0, **_LTXAV),
        _ltxav_clip,
        (128, 1, 8, 8),
        "gemma3_12b",
        read=(),
    ),
    _family(
        "MiniMax-H3",  # the host adds the sound to an empty latent of its pictures
        _minimax,
        _of(_clip, minimax.MiniMaxH3Tokenizer, minimax.te(), "qwen3vl_32b"),
        (24, 1, 8, 8),
        "qwen3vl_32b",
    ),
    _family(
        "Lens",  # its tokenizer and its encoder are its own, and take whole numbers only
        _of(_model, supported.Lens, **_LENS),
        _lens_clip,
        (128, 8, 8),
    ),
)
