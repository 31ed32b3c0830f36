"""Training on a family nothing was written for: a small SD3 with three text encoders, T5 among them; prints JSON."""

import json
import logging
import tempfile
from pathlib import Path

import pack
import torch

pack.load_pack()

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import comfy.text_encoders.sd3_clip as sd3_clip  # noqa: E402
from textinv.textinv_core import save_embedding  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.training.examples import Example  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.INFO)
CPU = torch.device("cpu")
ENCODERS = {
    "clip_l_model_config": {"num_hidden_layers": 3},
    "clip_g_model_config": {"num_hidden_layers": 3},
    "t5xxl_model_config": {"num_layers": 2, "d_ff": 64, "num_heads": 2, "d_kv": 32},
}


def load():
    config = comfy.supported_models.SD3(
        {
            "in_channels": 16,
            "depth": 2,
            "patch_size": 2,
            "num_patches": 256,
            "pos_embed_max_size": 16,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
        }
    )
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=CPU)
    target = comfy.supported_models_base.ClipTarget(
        sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=True, dtype_t5=torch.float16)
    )
    clip = comfy.sd.CLIP(target, embedding_directory=[], model_options=ENCODERS)
    generator = torch.Generator().manual_seed(0)
    # `pos_embed` is a buffer, and like the weights not initialised by the host.
    for weight in [model.diffusion_model.pos_embed, *model.parameters(), *clip.cond_stage_model.parameters()]:
        scale = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.0
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=generator) * scale + (weight.ndim == 1))
    return comfy.model_patcher.ModelPatcher(model, CPU, CPU), clip


with torch.inference_mode():
    model, clip = load()
    host = ComfyHost(clip, model)
    start = host.create_embedding("my-dog", "a dog", 2)
    with torch.inference_mode(False):
        latent = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(1))
    examples = [Example(latent, "on grass"), Example(latent.flip(-1), "in snow")]
    settings = TrainSettings(("[name] [filewords]",), 12, "0.02", batch_size=2, gradient_accumulation=1)
    with host.trainable(latent, 2) as trainable:
        steps = list(Training(trainable, examples, LearnableEmbedding(start), settings).steps())
        schedule = trainable.noise_schedule
    save_embedding(steps[-1].learnt, file := Path(tempfile.mkdtemp(), "my-dog-12.safetensors"))
    off = host.read_back(steps[-1].learnt, file), host.read_back(start, file)
    velocity = schedule.target(torch.tensor([[2.0]]), torch.tensor([[5.0]]), torch.tensor([300]))
print(
    json.dumps(
        {
            "widths": host.widths,
            "losses": [step.loss for step in steps],
            "learnt": {key: not torch.equal(steps[0].learnt.vectors[key], rows) for key, rows in start.vectors.items()},
            "velocity": float(velocity),
            "off": off,
            "norms": host.word_norms(),
        }
    )
)
