"""How far the loss on fixed noise has fallen after as many pictures, by the usual preset and by the fast one, on any
model that the command trains on: for those the toy world says nothing of, such as SDXL with its two text encoders.

    python -m benchmarks.fixed_loss --model sdxl.safetensors --images FOLDER --size 1024

Without --model it is a small SDXL of random weights, which has nothing to learn but which vectors its text encoders
send where: that tells whether the steps of the recipe lead down there too, not whether anything is learnt.

The noise, the timesteps (from 0 to 1000, for both) and the pictures are the same for every figure of a seed. `less`: of
the loss at the start, in percent, with 95 % bootstrap intervals over seeds.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from benchmarks.learning import of_preset
from benchmarks.tables import interval, table
from benchmarks.toyworld import models, world
from textinv_core.hosts.diffusers import PipelineHost, load
from textinv_core.images import load_folder, preprocess
from textinv_core.prompts import TEMPLATES
from textinv_core.training.examples import Example
from textinv_core.training.learnable import LearnableEmbedding
from textinv_core.training.settings import TrainSettings
from textinv_core.training.training import Training

LOOKS = (0, 16, 32, 64, 100, 200)  # pictures seen
NAME = "subject"


def small_sdxl(folder: Path) -> PipelineHost:
    """A random one with both text encoders, written to a folder as diffusers does."""
    torch.manual_seed(0)
    words = world.words()
    models.write_tokenizer(folder / "words", words)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "words")
    widths = {"text_encoder": 64, "text_encoder_2": 96}
    kinds = {"text_encoder": transformers.CLIPTextModel, "text_encoder_2": transformers.CLIPTextModelWithProjection}
    encoders = {key: kinds[key](models.text_config(words, width)) for key, width in widths.items()}
    unet = diffusers.UNet2DConditionModel(
        sample_size=models.LATENT,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=sum(widths.values()),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=widths["text_encoder_2"] + 6 * 8,
    )
    for name, weight in unet.named_parameters():
        if "attn2" in name:  # as they are at first, pictures hardly depend on prompts
            weight.data *= 4
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=models.vae(),
        **encoders,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=models.scheduler(),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder / "sdxl")
    return load(folder / "sdxl")


def fixed_losses(host: PipelineHost, examples: Sequence[Example], recipe: dict[str, Any], seed: int) -> list[float]:
    """Of what has been learnt, after each of LOOKS."""
    told = dict(recipe)
    start = host.create_embedding(NAME, "figure", told.pop("vectors"))
    template, batch_size = TEMPLATES["subject"], told["batch_size"]
    settings = TrainSettings(template, steps=LOOKS[-1] // batch_size, seed=seed, gradient_accumulation=1, **told)
    asked = TrainSettings(template, steps=settings.steps + 1, seed=seed, batch_size=4)
    found = []
    with host.trainable(examples[0].latent, asked.batch_size) as model:
        training = Training(model, examples, LearnableEmbedding(start), settings)
        for look in LOOKS:
            while training.step * batch_size < look:
                training.advance()
            learnt = LearnableEmbedding(training.learnt() or start)
            found.append(Training(model, examples, learnt, asked).evaluate().loss)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model's file or folder")
    parser.add_argument("--images", type=Path, help="a folder with pictures")
    parser.add_argument("--size", type=int, default=64, help="of the pictures when learnt from; %(default)s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seeds", type=int, default=6, help="trainings by each preset; %(default)s")
    given = parser.parse_args()
    if bool(given.model) != bool(given.images):
        parser.error("--model and --images go together")
    with tempfile.TemporaryDirectory() as place:
        host = load(given.model, device=given.device) if given.model else small_sdxl(Path(place))
        if given.images:
            folder = given.images.absolute()
            images = [
                image.pixels for image in preprocess(load_folder(folder.parent, folder.name), given.size, given.size)
            ]
        else:
            images = [*world.draw(world.portraits(world.held_out_characters(30)[-1], 8, 0))]
        examples = [Example(latent) for latent in host.encode(images)]
        recipes = {"preset": of_preset("subject"), "preset fast": of_preset("fast")}
        less = {}
        for name, recipe in recipes.items():
            losses = np.array([fixed_losses(host, examples, recipe, seed) for seed in range(given.seeds)])
            less[name] = 100 * (1 - losses / losses[:, :1])
            print(name, "begins at", np.round(losses[:, 0], 4).tolist(), flush=True)
    each = [*less.values(), less["preset fast"] - less["preset"]]
    rows = ([look, *(points(of[:, i]) for of in each)] for i, look in enumerate(LOOKS) if look)
    print(table(["pictures", *(f"{name}: less" for name in less), "preset fast - preset"], rows))


def points(values: np.ndarray) -> str:
    """`interval` over seeds."""
    middle, low, high = interval(values[:, None])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
