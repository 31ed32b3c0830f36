"""Nodes for the tests' ComfyUI alone; the toy world is built from the host's own classes in its small sizes."""

import json
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.utils
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from comfy.supported_models_base import ClipTarget
from comfy_api.latest import ComfyExtension, io


def _targets(folder: Path) -> ClipTarget:
    config = json.loads((folder / "text_encoder" / "config.json").read_text())

    class Tokenizer(SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=self.clip_l_tokenizer)

        @staticmethod
        def clip_l_tokenizer(embedding_directory, tokenizer_data):
            return SDTokenizer(
                str(folder / "tokenizer"),
                max_length=config["max_position_embeddings"],
                embedding_directory=embedding_directory,
                embedding_size=config["hidden_size"],
                tokenizer_data=tokenizer_data,
            )

    class Encoder(SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            end = config["eos_token_id"]
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=config["max_position_embeddings"],
                textmodel_json_config=config,
                special_tokens={"start": config["bos_token_id"], "end": end, "pad": end},
                return_projected_pooled=False,
                model_options=model_options or {},
            )
            # The host's class has CLIP's vocabulary, whatever the config says.
            words = self.operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
            self.transformer.set_input_embeddings(words)

    class TextModel(SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(device, dtype, model_options or {}, clip_model=Encoder)

    return ClipTarget(Tokenizer, TextModel)


class ToyModel(comfy.supported_models.SD15):
    unet_extra_config = {}  # noqa: RUF012


def load(folder: Path):
    """MODEL, CLIP and VAE of a folder with `toyworld.safetensors` and its configs, as checkpoint loaders give."""
    state = comfy.utils.load_torch_file(str(folder / "toyworld.safetensors"))
    unet = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    levels, blocks = len(unet["block_out_channels"]), unet["layers_per_block"]
    model_config = ToyModel(
        {
            "image_size": 32,
            "in_channels": unet["in_channels"],
            "out_channels": unet["out_channels"],
            "model_channels": unet["block_out_channels"][0],
            "channel_mult": [1] * levels,
            "num_res_blocks": [blocks] * levels,
            "transformer_depth": [1] * levels * blocks,
            "transformer_depth_middle": 1,
            "transformer_depth_output": [1] * levels * (blocks + 1),
            "context_dim": unet["cross_attention_dim"],
            "num_heads": unet["attention_head_dim"],
            "num_head_channels": -1,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": False,
            "adm_in_channels": None,
            "legacy": False,
        }
    )
    model = model_config.get_model(state, "model.diffusion_model.", device="cpu")
    model.load_model_weights(state, "model.diffusion_model.")
    management = comfy.model_management
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=management.get_torch_device(), offload_device=management.unet_offload_device()
    )
    text = {f"clip_l.{k[17:]}": v for k, v in state.items() if k.startswith("cond_stage_model.")}
    clip = comfy.sd.CLIP(_targets(folder), folder_paths.get_folder_paths("embeddings"), state_dict=text)
    channels = vae["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": vae["latent_channels"],
        "resolution": vae["sample_size"],
        "in_channels": 3,
        "out_ch": 3,
        "ch": channels[0],
        "ch_mult": [c // channels[0] for c in channels],
        "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    pictures = {k[18:]: v for k, v in state.items() if k.startswith("first_stage_model.")}
    config = {"params": {"ddconfig": ddconfig, "embed_dim": vae["latent_channels"]}}
    return patcher, clip, comfy.sd.VAE(sd=pictures, config=config)


TOWER = {"num_hidden_layers": 3, "intermediate_size": 64, "num_attention_heads": 1}


def random_clip(width=96):
    """SDXL's CLIP, small, with a clip_g that is `width` wide."""
    target = ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    sizes = {"clip_l": {**TOWER, "hidden_size": 64}, "clip_g": {**TOWER, "hidden_size": width}}
    options = {f"{name}_model_config": config for name, config in sizes.items()}
    clip = comfy.sd.CLIP(target, folder_paths.get_folder_paths("embeddings"), model_options=options)
    fill(clip.cond_stage_model)
    return clip


def random_clip_vision(width=96):
    """A CLIP_VISION, small, that projects to vectors `width` wide."""
    config = {"model_type": "clip_vision_model", "hidden_size": 64, "hidden_act": "gelu", "projection_dim": width}
    config |= {"num_channels": 3, "image_size": 32, "patch_size": 8}
    clip_vision = ClipVisionModel(TOWER | config)
    fill(clip_vision.model)
    return clip_vision


@torch.no_grad()
def fill(model):
    """Random weights that keep a signal's size; the host leaves them as they were in memory."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale + (weight.ndim == 1))


class LoadTowers(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="TestLoadTowers", inputs=[], outputs=[io.Clip.Output(), io.ClipVision.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(random_clip(), random_clip_vision())


class LoadToyWorld(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestLoadToyWorld",
            inputs=[io.String.Input("folder")],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, folder) -> io.NodeOutput:
        return io.NodeOutput(*load(Path(folder)))


class StopSampling(io.ComfyNode):
    """Patches a model so that sampling with it, and nothing else, fails or is cancelled."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestStopSampling",
            inputs=[io.Model.Input("model"), io.Combo.Input("how", options=["fail", "cancel"])],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, how) -> io.NodeOutput:
        def stop(arguments):
            if how == "fail":
                raise ZeroDivisionError("sampling was told to fail")
            comfy.model_management.interrupt_current_processing()
            return arguments["denoised"]

        model = model.clone()
        model.set_model_sampler_post_cfg_function(stop)
        return io.NodeOutput(model)


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [LoadToyWorld, LoadTowers, StopSampling]


async def comfy_entrypoint():
    return Extension()
