"""The node that trains."""

import json
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import comfy.samplers
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from server import PromptServer

from ..textinv_core.embedding import continued
from ..textinv_core.errors import UserError
from ..textinv_core.hosts.comfy import SAMPLER, SCHEDULER, ComfyHost
from ..textinv_core.hosts.precision import PRECISIONS
from ..textinv_core.images import as_pictures
from ..textinv_core.prompts import TEMPLATES, template_lines
from ..textinv_core.schedule import training_rates
from ..textinv_core.training.learn import Encoded, Started, learn
from ..textinv_core.training.preview import RANGES as PREVIEW_RANGES
from ..textinv_core.training.preview import Preview
from ..textinv_core.training.previews import Previewed, all_of
from ..textinv_core.training.run import Ended
from ..textinv_core.training.settings import (
    EARLY_STOP,
    GRADIENT_CHECKPOINTING,
    GRADIENT_CLIPPING,
    LOSS_WEIGHTING,
    OPTIMIZERS,
    RESUME,
    TrainSettings,
)
from ..textinv_core.training.training import Step
from .routes import finishable
from .types import CATEGORY, EmbeddingType, ShuffleType, sentence, setting


class TextInvTrainEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TextInvTrainEmbedding",
            display_name="Train Embedding (Textual Inversion)",
            category=CATEGORY,
            description="Teaches an embedding what your pictures show, on the model as it is loaded and patched. "
            "Cancelling keeps what was learnt, in output/textual_inversion.",
            search_aliases=["textual inversion", "training"],
            is_input_list=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
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
                setting(io.Int, TrainSettings, "steps", min=1, max=1_000_000),
                setting(io.String, TrainSettings, "learning_rate"),
                setting(io.Int, TrainSettings, "batch_size", min=1, max=1024),
                setting(io.Int, TrainSettings, "gradient_accumulation", min=1, max=1024),
                setting(
                    io.Int,
                    TrainSettings,
                    "seed",
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # By the page's default each queueing would have another seed, and nothing would be gone on with.
                    control_after_generate=io.ControlAfterGenerate.fixed,
                ),
                io.String.Input(
                    "preview_prompt",
                    optional=True,
                    default="",
                    tooltip="What to generate as a preview. [name] stands for the embedding. Empty takes a training "
                    "prompt.",
                ),
                io.Int.Input(
                    "preview_steps",
                    optional=True,
                    default=Preview.steps,
                    min=0,
                    max=1000,
                    tooltip="Sampling steps of previews. With 0 the first of your pictures comes out instead.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="What the model computes in; auto as in sampling. The embedding itself is always fp32.",
                ),
                setting(
                    io.Combo,
                    TrainSettings,
                    "gradient_checkpointing",
                    options=list(GRADIENT_CHECKPOINTING),
                    optional=True,
                    advanced=True,
                ),
                setting(
                    io.Combo,
                    TrainSettings,
                    "gradient_clipping",
                    options=list(GRADIENT_CLIPPING),
                    optional=True,
                    advanced=True,
                ),
                setting(
                    io.Float, TrainSettings, "clip_at", min=1e-8, max=1e4, step=0.0001, optional=True, advanced=True
                ),
                setting(io.Int, TrainSettings, "min_timestep", min=0, max=999, optional=True, advanced=True),
                setting(io.Int, TrainSettings, "max_timestep", min=1, max=1000, optional=True, advanced=True),
                setting(
                    io.Combo,
                    TrainSettings,
                    "loss_weighting",
                    options=list(LOSS_WEIGHTING),
                    optional=True,
                    advanced=True,
                ),
                io.Boolean.Input(
                    "mask_loss",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Use connected masks as weights of the loss.",
                ),
                setting(io.Int, TrainSettings, "save_every", min=0, max=1_000_000, optional=True, advanced=True),
                setting(io.Combo, TrainSettings, "resume", options=list(RESUME), optional=True, advanced=True),
                setting(io.Int, TrainSettings, "evaluate_every", min=-1, max=1_000_000, optional=True, advanced=True),
                setting(io.Int, TrainSettings, "held_out", min=0, max=1_000_000, optional=True, advanced=True),
                setting(io.Combo, TrainSettings, "early_stop", options=list(EARLY_STOP), optional=True, advanced=True),
                setting(io.Int, TrainSettings, "patience", min=1, max=1_000_000, optional=True, advanced=True),
                setting(io.Int, TrainSettings, "keep", min=0, max=1_000_000, optional=True, advanced=True),
                _of_preview(io.Int, "every", advanced=False),
                _of_preview(io.String, "negative", multiline=True),
                _of_preview(
                    io.Combo,
                    "sampler",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default=SAMPLER,
                    tooltip="The sampler of previews, as in KSampler.",
                ),
                _of_preview(
                    io.Combo,
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default=SCHEDULER,
                    tooltip="The scheduler of previews, as in KSampler.",
                ),
                _of_preview(io.Float, "cfg", step=0.1, round=0.01),
                _of_preview(io.Int, "seed"),
                _of_preview(io.Int, "width", step=8),
                _of_preview(io.Int, "height", step=8),
                setting(io.Combo, TrainSettings, "optimizer", options=list(OPTIMIZERS), optional=True, advanced=True),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="For models with guidance built in, such as Flux dev: what they are told while they are "
                    "trained on, as by FluxGuidance. 0 is ComfyUI's default for the model.",
                ),
            ],
            outputs=[
                EmbeddingType.Output("embedding", tooltip="The trained embedding."),
                io.LossMap.Output("loss", tooltip="The loss of every step, for Plot Loss Graph."),
                io.Image.Output("previews", tooltip="All previews of the run, in order; the last is of its end."),
                EmbeddingType.Output(
                    "best",
                    tooltip="The embedding as it was when the fixed loss was lowest; the trained one without it.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, template=None, custom_template=("",), learning_rate=None):
        # Lists of one, as the node takes lists; with None or nothing where linked, and checked when the graph runs.
        chosen, own, rate = (values[0] if values else None for values in (template, custom_template, learning_rate))
        checks = []
        if chosen is not None and (own is not None or chosen != "custom"):
            checks.append(sentence(lambda name: template_lines(name, own or ""), chosen))
        if rate is not None:
            checks.append(sentence(lambda text: training_rates(text, max_steps=sys.maxsize), rate))
        return next((check for check in checks if check is not True), True)

    @classmethod
    def execute(cls, images, captions=None, masks=None, **inputs) -> io.NodeOutput:
        given = {name: values[0] for name, values in inputs.items() if values}
        settings = _settings(given)
        if captions is None and any("[filewords]" in line for line in settings.template):
            raise UserError("This template has [filewords], so captions must be connected; or choose another template.")
        host = ComfyHost(
            given["clip"], given["model"], given["vae"], given.get("precision", "auto"), given.get("guidance", 0.0)
        )
        pictures = as_pictures(images, captions, masks if given.get("mask_loss", True) else None)
        preview = _preview(given)
        bar = comfy.utils.ProgressBar(settings.steps)
        started, outputs, made = None, {}, {}
        events = learn(
            host,
            pictures,
            continued(given["embedding"]),
            settings,
            Path(folder_paths.get_output_directory()) / "textual_inversion",
            shuffle=given.get("shuffle"),
            preview=preview,
            texts=_metadata(cls.hidden),
        )
        with ExitStack() as stack:
            stack.enter_context(closing(events))
            for event in events:
                match event:
                    case Encoded():
                        bar.update_absolute(event.done, event.pictures)
                        PromptServer.instance.send_progress_text(str(event), cls.hidden.unique_id)
                    case Started():
                        started = event
                        stack.enter_context(finishable(cls.hidden.unique_id, event.finish))
                    case Step():
                        bar.update_absolute(event.step, event.last_step)
                        PromptServer.instance.send_progress_text(str(event), cls.hidden.unique_id)
                    case Previewed():
                        made[event.step] = event.pictures
                    case Ended():
                        outputs |= {"embedding": event.learnt, "loss": {"loss": event.losses}}
                        outputs["best"] = event.best or event.learnt
                        if event.verdict is not None:
                            PromptServer.instance.send_progress_text(event.verdict.text, cls.hidden.unique_id)
        assert started is not None and started.folder is not None  # the first event, of the only process
        steps = range((started.embedding.step or 0) + 1, outputs["embedding"].step + 1)
        previews = all_of(started.folder, steps, made) if preview.steps else []
        shown = torch.cat(previews or [pictures[0].pixels[None]])
        return io.NodeOutput(outputs["embedding"], outputs["loss"], shown, outputs["best"])


def _settings(given: dict) -> TrainSettings:
    template = template_lines(given["template"], given.get("custom_template", ""))
    values = {name: value for name, value in given.items() if name in TrainSettings.__dataclass_fields__}
    settings = TrainSettings(**{**values, "template": template})
    training_rates(settings.learning_rate, sys.maxsize)  # what is linked was not seen before
    return settings


def _of_preview(kind: Any, name: str, **of_widget: Any) -> Any:
    """The input for a setting of previews."""
    least, most = PREVIEW_RANGES.get(name, (None, None))
    range_of = {} if most is None else {"min": least, "max": most}
    return setting(kind, Preview, name, "preview_", **{"optional": True, "advanced": True, **range_of, **of_widget})


def _preview(given: dict) -> Preview:
    names = {f"preview_{name}": name for name in Preview.__dataclass_fields__}
    return Preview(**{names[each]: value for each, value in given.items() if each in names})


def _metadata(hidden: Any) -> dict[str, str]:
    """What the host's Save Image writes into PNG, so that dropping one on the page opens the graph."""
    if args.disable_metadata:
        return {}
    found = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {name: json.dumps(each) for name, each in found.items() if each is not None}


NODES = [TextInvTrainEmbedding]
