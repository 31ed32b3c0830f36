"""Training an embedding on each of the host's model families, made small with random weights; prints JSON by family.

families.py [NAME ...]: those named, or all.

What is printed of each: `keys` of the encoders that take part, `order` in which they do, `unread` by plain prompts;
`refused`, with nothing else, where none can; `slope` of the loss along its gradient, measured over computed;
`checkpointed`, the largest difference of the gradient with checkpoints, as a part of its largest number; `moved`, the
encoders whose vectors ten steps have changed; `applied`, whether a conditioning follows the vectors; `file`, how far it
is off with the file read as plain prompts read it (see `Host.read_back`; None for those that do not), `crashes` where
they raise; `changed`, what of the host is not as it was.
"""

import gc
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import pack
import torch

pack.load_pack()

import comfy.model_management  # noqa: E402
from losses import NAME, PROMPT, Losses, largest_difference  # noqa: E402
from small import FAMILIES  # noqa: E402
from state import state  # noqa: E402
from textinv.textinv_core import save_embedding  # noqa: E402
from textinv.textinv_core.errors import UserError  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402
from textinv.textinv_core.training.examples import Example  # noqa: E402
from textinv.textinv_core.training.learnable import LearnableEmbedding  # noqa: E402
from textinv.textinv_core.training.settings import TrainSettings  # noqa: E402
from textinv.textinv_core.training.training import Training  # noqa: E402

logging.disable(logging.WARNING)
LINES = ("a picture of [name]", "[name] in the middle of the picture")


def trained(host, start, latent):
    examples = [Example(latent, "a hat"), Example(latent.flip(-1), "a hat")]
    settings = TrainSettings(LINES, 10, "0.01", batch_size=1, gradient_accumulation=1)
    with host.trainable(latent, 1) as model:
        training = Training(model, examples, LearnableEmbedding(start, names=host.names), settings)
        return list(training.steps())[-1].learnt


def crashes(clip, folder):
    """What a plain prompt comes to that names a file in `folder`; None where nothing happens."""
    clip = clip.clone()
    own = type(clip.tokenizer).__new__(type(clip.tokenizer))
    vars(own).update(vars(clip.tokenizer))
    for name, each in vars(clip.tokenizer).items():
        if getattr(each, "embedding_directory", None) is not None:
            mine = type(each).__new__(type(each))
            vars(mine).update(vars(each), embedding_directory=[folder])
            setattr(own, name, mine)
    clip.tokenizer = own
    try:
        clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:100]
    return None


def look_at(family):
    with torch.inference_mode():
        model, clip = family.model(), family.clip()
    host = ComfyHost(clip, model)
    latent = torch.randn(family.latent, generator=torch.Generator().manual_seed(1))
    try:
        with torch.inference_mode():
            start = host.create_embedding(NAME, "a dog", 2)
            with host.trainable(latent, 1):
                pass
    except UserError as error:
        return {"refused": str(error)}
    comfy.model_management.load_models_gpu([model, clip.patcher])  # which leaves marks of its own on modules
    before = state(model, clip)
    with torch.inference_mode():
        with host.trainable(latent, 1) as trainable:
            losses = Losses(trainable, latent)
            start_vectors = {key: rows.clone() for key, rows in start.vectors.items()}
            loss, gradient = losses.gradient(start_vectors)
            slope = losses.slope(start_vectors, gradient, loss)
            trainable.checkpoint_activations()
            _, again = losses.gradient(start_vectors)
            off = largest_difference(again, gradient)
            tolerant = trainable.is_tolerant
        learnt = trained(host, start, latent)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{NAME}.safetensors")
            save_embedding(learnt, path)
            crash = crashes(clip, folder)
            file = host.read_back(learnt, path) if not host.unread else None
        norms = {key: float(each.norm()) for key, each in gradient.items()}
        one, other = host._encoded(start), host._encoded(learnt)
    after = state(model, clip)
    return {
        "keys": sorted(start.vectors),
        "order": list(start.vectors),
        "unread": sorted(host.unread),
        "slope": slope,
        "gradient": norms,
        "loss": loss,
        "tolerant": tolerant,
        "checkpointed": off,
        "moved": sorted(key for key, rows in learnt.vectors.items() if (rows != start.vectors[key]).all()),
        "applied": any(not torch.equal(a, b) for a, b in zip(one, other, strict=True)),
        "file": file,
        "crashes": crash,
        "changed": sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)),
    }


chosen = [name for name in FAMILIES if not pack.ARGS or name in pack.ARGS]
result = {}
for name in chosen:
    began = time.perf_counter()
    try:
        result[name] = look_at(FAMILIES[name])
    except Exception as error:
        logging.disable(logging.NOTSET)
        logging.exception(name)
        logging.disable(logging.WARNING)
        result[name] = {"error": f"{type(error).__name__}: {error}"}
    result[name]["seconds"] = round(time.perf_counter() - began, 1)
    print(name, str(result[name])[:400], file=sys.stderr)
    gc.collect()
print(json.dumps(result))
