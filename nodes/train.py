"""The node that trains."""

from functools import partial
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from server import PromptServer

from ..textinv_core.dataset import encoded_examples
from ..textinv_core.embedding import with_model
from ..textinv_core.hosts import comfy as host
from ..textinv_core.images import preprocess, save_picture
from ..textinv_core.prompts import TEMPLATES, render, template_lines
from ..textinv_core.training.loop import Progress
from ..textinv_core.training.run import new_run_folder, run_training
from ..textinv_core.training.settings import TrainSettings
from .types import CATEGORY, EmbeddingType, ShuffleType


class TextInvTrainEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        default = {name: field.default for name, field in TrainSettings.__dataclass_fields__.items()}
        return io.Schema(
            node_id="TextInvTrainEmbedding",
            display_name="Train Embedding (Textual Inversion)",
            category=CATEGORY,
            description="Teaches an embedding what your pictures show, on the model as it is loaded and patched. "
            "Cancelling keeps what was learnt, in output/textual_inversion.",
            search_aliases=["textual inversion", "training"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model to learn on; it is not changed."),
                io.Clip.Input("clip", tooltip="Its text encoders, with clip skip and LoRAs as they will be used."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                EmbeddingType.Input("embedding", tooltip="What to train, new or loaded; steps are counted on."),
                io.Image.Input("images", tooltip="The pictures. Those of equal size share batches."),
                io.String.Input(
                    "captions", optional=True, force_input=True, tooltip="What [filewords] stands for, per picture."
                ),
                io.Mask.Input(
                    "masks", optional=True, tooltip="Where to learn, per picture: white counts, black does not."
                ),
                ShuffleType.Input("shuffle", optional=True, tooltip="How vectors are shuffled; not at all without it."),
                io.Combo.Input(
                    "template",
                    options=[*TEMPLATES, "custom"],
                    default="subject",
                    tooltip="The training prompts: for a subject or a style, with or without each picture's "
                    "filewords; none takes the captions alone; custom takes your own lines.",
                ),
                io.String.Input(
                    "custom_template",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="For template custom: one prompt a line, each with [name], and [filewords] if you like.",
                ),
                io.Int.Input(
                    "steps",
                    default=default["steps"],
                    min=1,
                    max=1_000_000,
                    tooltip="Train until the embedding has had this many steps, earlier trainings included.",
                ),
                io.String.Input(
                    "learning_rate",
                    default=default["learning_rate"],
                    tooltip="One rate, or rates with the step each one lasts to: 0.005:100, 1e-3:1000, 1e-5. Training "
                    "ends at the last listed step.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=default["batch_size"],
                    min=1,
                    max=1024,
                    tooltip="Pictures in memory at once. 4, with gradient_accumulation 1, learns the same in less time "
                    "where there is room.",
                ),
                io.Int.Input(
                    "gradient_accumulation",
                    default=default["gradient_accumulation"],
                    min=1,
                    max=1024,
                    tooltip="Batches a step takes in one after another. More pictures a step learn more steadily.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Same seed, same inputs, same embedding.",
                ),
                io.String.Input(
                    "preview_prompt",
                    optional=True,
                    default="",
                    tooltip="What to generate when training is over. [name] stands for the embedding. Empty takes a "
                    "training prompt.",
                ),
                io.Int.Input(
                    "preview_steps",
                    optional=True,
                    default=20,
                    min=0,
                    max=1000,
                    tooltip="Sampling steps of the preview. With 0 the first of your pictures comes out instead.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(host.PRECISIONS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="What the model computes in; auto as in sampling. The embedding itself is always fp32.",
                ),
                io.Combo.Input(
                    "gradient_checkpointing",
                    options=["auto", "on", "off"],
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="Much less memory for about half as much time again. Auto turns it on when memory runs "
                    "out.",
                ),
                io.Combo.Input(
                    "gradient_clipping",
                    options=["off", "norm", "value"],
                    default="off",
                    optional=True,
                    advanced=True,
                    tooltip="Limits large gradients: all of them together by their norm, or each value by itself.",
                ),
                io.Float.Input(
                    "clip_at",
                    default=default["clip_at"],
                    min=1e-8,
                    max=1e4,
                    step=0.0001,
                    optional=True,
                    advanced=True,
                    tooltip="The limit for gradient clipping.",
                ),
                io.Int.Input(
                    "min_timestep",
                    default=0,
                    min=0,
                    max=999,
                    optional=True,
                    advanced=True,
                    tooltip="Learn only from noise levels above this many thousandths; 0 is almost no noise.",
                ),
                io.Int.Input(
                    "max_timestep",
                    default=1000,
                    min=1,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="Learn only from noise levels below this many thousandths; 1000 is almost only noise.",
                ),
                io.Combo.Input(
                    "loss_weighting",
                    options=["none", "min_snr"],
                    default="none",
                    optional=True,
                    advanced=True,
                    tooltip="min_snr evens out how much each noise level pulls.",
                ),
                io.Boolean.Input(
                    "mask_loss",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Use connected masks as weights of the loss.",
                ),
                io.Int.Input(
                    "save_every",
                    default=default["save_every"],
                    min=0,
                    max=1_000_000,
                    optional=True,
                    advanced=True,
                    tooltip="Keep a copy of the embedding in the run's folder every so many steps; 0 for only the "
                    "last one.",
                ),
            ],
            outputs=[
                EmbeddingType.Output("embedding", tooltip="The trained embedding."),
                io.LossMap.Output("loss", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Image.Output("previews", tooltip="A picture made with the trained embedding."),
            ],
        )

    @classmethod
    def execute(cls, images, captions=None, masks=None, **inputs) -> io.NodeOutput:
        given = {name: values[0] for name, values in inputs.items() if values}
        model, clip, vae, embedding = (given[name] for name in ("model", "clip", "vae", "embedding"))
        settings = _settings(given)
        if captions is None and any("[filewords]" in line for line in settings.template):
            raise ValueError(
                "This template has [filewords], so captions must be connected; or choose another template."
            )
        host.check_fits(clip, embedding)
        masks = masks if given.get("mask_loss", True) else None
        images, captions, masks = preprocess(images, captions, masks, 0, 0, "keep")

        with host.untouched_random_state():
            encode = partial(host.encode_images, model, vae)
            examples = encoded_examples(images, captions, masks, host.latent_multiple(vae), encode)
            largest = max((e.latent for e in examples), key=torch.numel)
            height, width = (side * host.latent_multiple(vae) for side in examples[0].latent.shape[-2:])
            facts = {"textinv.base_model": host.fingerprint(model), "modelspec.resolution": f"{width}x{height}"}
            bar = comfy.utils.ProgressBar(settings.steps)

            def on_step(progress: Progress) -> None:
                bar.update_absolute(progress.step, progress.last_step)
                state = f"step {progress.step}/{progress.last_step}, loss {progress.loss:.4f}"
                state += f", rate {progress.learning_rate:g}"
                PromptServer.instance.send_progress_text(state, cls.hidden.unique_id)
                comfy.model_management.throw_exception_if_processing_interrupted()

            with host.trainable(model, clip, largest, settings.batch_size, given.get("precision", "auto")) as trainable:
                trained = run_training(
                    trainable,
                    examples,
                    with_model(embedding, facts),
                    settings,
                    new_run_folder(Path(folder_paths.get_output_directory()) / "textual_inversion", embedding.name),
                    shuffle=given.get("shuffle"),
                    on_step=on_step,
                )
            previews = images[0][None]
            if steps := given.get("preview_steps", 0):
                line = given.get("preview_prompt") or settings.template[0]
                prompt = render(line, embedding.name, captions[0])
                applied = host.apply_embedding(clip, trained.embedding)
                previews = host.generate(model, applied, vae, prompt, examples[0].latent, steps, settings.seed)
                save_picture(previews[0], trained.folder / "images" / f"{embedding.name}-{trained.embedding.step}.png")
        return io.NodeOutput(trained.embedding, {"loss": trained.losses}, previews)


def _settings(given: dict) -> TrainSettings:
    template = template_lines(given["template"], given.get("custom_template", ""))
    values = {name: value for name, value in given.items() if name in TrainSettings.__dataclass_fields__}
    return TrainSettings(**{**values, "template": template})


NODES = [TextInvTrainEmbedding]
