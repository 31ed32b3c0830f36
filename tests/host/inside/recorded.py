"""Trainings on the toy world and on an SDXL in this process, and what rounding depends on here; see `tests/bits.py`.

recorded.py WORLD SDXL FOLDER: the toy world's folder, a checkpoint; FOLDER gets a file a training. Prints `machine()`.
"""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import pack
import torch

root = pack.load_pack()
sys.path[:0] = [str(Path(__file__).parents[n]) for n in (1, 2)]

import bits  # noqa: E402
import toyworld  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.images import load_folder  # noqa: E402
from textinv.textinv_core.prompts.templates import TEMPLATES  # noqa: E402
from textinv.textinv_core.shuffle import ShuffleConfig  # noqa: E402
from textinv.textinv_core.training.examples import encoded_examples  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.INFO)
torch.set_num_threads(1)
world, checkpoint, folder = map(Path, pack.ARGS)
PLAIN = {"batch_size": 2, "gradient_accumulation": 2, "learning_rate": "0.005", "seed": 3}
WEIGHTED = ("(a [name]:1.3) [filewords]", "[name] " + "small " * 50, "[name] and (no [filewords]:0.7)")
TRAININGS = {
    "plain": ("auto", TEMPLATES["subject"], PLAIN, ShuffleConfig("all"), 4),
    "weighted": (
        "fp32",
        WEIGHTED,
        PLAIN | {"loss_weighting": "min_snr", "gradient_clipping": "norm", "gradient_checkpointing": "on"},
        None,
        4,
    ),
    "bf16": ("bf16", TEMPLATES["style_filewords"], PLAIN, ShuffleConfig("dynamic", "occurrence"), 4),
    "fp16": ("fp16", TEMPLATES["subject"], PLAIN, None, 4),
    "sdxl": ("auto", WEIGHTED[:1], {**PLAIN, "gradient_accumulation": 1}, ShuffleConfig("all"), 2),
}

with torch.inference_mode():
    for name, (precision, template, settings, shuffle, steps) in TRAININGS.items():
        model, clip, vae = pack.load_checkpoint(checkpoint) if name == "sdxl" else toyworld.load(world)
        pictures = list(load_folder(world, "pictures"))
        pictures[2] = replace(pictures[2], mask=torch.linspace(0, 1, 64).expand(64, 64))
        host = ComfyHost(clip, model, vae, precision)
        examples = encoded_examples(host, pictures)
        learnable = LearnableEmbedding(host.create_embedding("cat", "figure", 3), shuffle or ShuffleConfig())
        with host.trainable(examples[0].latent, 2) as trainable:
            training = Training(trainable, examples, learnable, TrainSettings(template, steps, **settings))
            done = list(training.steps())
        found = {"losses": torch.tensor([step.loss for step in done], dtype=torch.float64)}
        found |= {f"{key} {n}": rows for n in (0, -1) for key, rows in done[n].learnt.vectors.items()}
        save_file({key: value.contiguous().clone() for key, value in found.items()}, folder / f"{name}.safetensors")
print(json.dumps(bits.machine()))
