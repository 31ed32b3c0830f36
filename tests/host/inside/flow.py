"""Training on a family nothing was written for: a small SD3 with three text encoders, T5 among them; prints JSON."""

import json
import logging

import pack
import torch

pack.load_pack()

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import comfy.text_encoders.sd3_clip as sd3_clip  # noqa: E402
from textinv.textinv_core.dataset import Example  # noqa: E402
from textinv.textinv_core.embedding import Embedding, initial_vectors  # noqa: E402
from textinv.textinv_core.hosts import comfy as host  # noqa: E402
from textinv.textinv_core.training.loop import train  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402

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
    rows = {key: initial_vectors(found, 2, True) for key, found in host.text_vectors(clip, "a dog").items()}
    embedding = Embedding("my-dog", rows, 0)
    with torch.inference_mode(False):
        latent = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(1))
    examples = [Example(latent, "on grass"), Example(latent.flip(-1), "in snow")]
    settings = TrainSettings(("[name] [filewords]",), 12, "0.02", batch_size=2, gradient_accumulation=1)
    with host.trainable(model, clip, latent, 2) as trainable:
        losses = [progress.loss for progress in train(trainable, examples, embedding, settings)]
        schedule = trainable.noise_schedule
        learnt = next(train(trainable, examples, embedding, settings)).embedding()
    velocity = schedule.target(torch.tensor([[2.0]]), torch.tensor([[5.0]]), torch.tensor([300]))
print(
    json.dumps(
        {
            "widths": host.widths(clip),
            "losses": losses,
            "learnt": {key: not torch.equal(learnt.vectors[key], rows[key]) for key in rows},
            "velocity": float(velocity),
        }
    )
)
