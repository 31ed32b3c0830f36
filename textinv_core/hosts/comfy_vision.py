"""What CLIP compares, of a CLIP_VISION and a CLIP of a ComfyUI graph: pictures and prompts in one space."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ..embedding import Embedding
from ..errors import UserError
from .autograd import lean, ordinary_weights, storages
from .base import Known
from .comfy import lean_modules, recast, set_for_training, without_streaming
from .comfy_text import encoders, tokenizer_with
from .tolerant import Tolerant

# Encoder key -> the vision model it was trained with, for the text encoders whose checkpoints hold the projection into
# the space they share. CLIP-L's, in SD1.x and SDXL, do not: the host computes with whatever was in memory there, and
# looks at nothing that comes out of it.
TRAINED_WITH = {"clip_g": "CLIP-ViT-bigG-14-laion2B-39B-b160k", "clip_h": "CLIP-ViT-H-14-laion2B-s32B-b79K"}
# Bytes to leave free: for the eight prompts of a step autograd keeps 1.1 GiB of SDXL's larger text encoder, measured.
ACTIVATIONS = 3 * 2**29


def comparable_encoder(clip: Any, clip_vision: Any) -> str:
    """The key of the text encoder of `clip` that can be compared with what `clip_vision` sees.

    Raises UserError, naming what fits, where there is none. Two models of equal width count as trained together: it
    cannot be seen whether they were.
    """
    widths = {key: encoder.width for key, encoder in encoders(clip).items() if key in TRAINED_WITH}
    if not widths:
        raise UserError(
            f"This CLIP ({type(clip.cond_stage_model).__name__}) cannot be compared with pictures: only SDXL's clip_g "
            "and SD2.x's clip_h come with the projection that it takes, and an SD1.x checkpoint has none. Disconnect "
            "clip_vision and images; the embedding then starts as its init text."
        )
    fits = " or ".join(f"{TRAINED_WITH[key]}, {width} wide, for {key}" for key, width in widths.items())
    if clip_vision is None:  # so unCLIPCheckpointLoader says that a checkpoint has none
        raise UserError(
            f"Where clip_vision comes from, there is no CLIP vision model: most checkpoints lack one. Load {fits}."
        )
    projection = getattr(clip_vision.model, "visual_projection", None)
    seen = projection.out_features if isinstance(projection, nn.Linear) else None
    if key := next((key for key, width in widths.items() if width == seen), None):
        return key
    differs = (
        "has no projection into the space that CLIP compares in" if seen is None else f"puts out vectors {seen} wide"
    )
    raise UserError(
        f"This CLIP vision model ({clip_vision.model_type}) {differs}, so its pictures cannot be compared with the "
        f"prompts of this CLIP. Load the one that was trained with it: {fits}."
    )


def image_embeds(clip_vision: Any, images: Sequence[Tensor]) -> Tensor:
    """What a vision model makes of the middles of pictures [H, W, 3] in 0..1, float32 [N, width] on the CPU."""
    embeds = []
    for image in images:
        comfy.model_management.throw_exception_if_processing_interrupted()
        embeds.append(clip_vision.encode_image(image[None], crop=True).image_embeds.to("cpu", torch.float32))
    return torch.cat(embeds)


@contextmanager
def pooled_text(clip: Any, key: str) -> Iterator[Callable[[Sequence[str], Embedding], Tensor]]:
    """What the text encoder `key` makes of prompts that name an embedding, with gradients: a `warm_start.Pooled`.

    For the length of the block, in which autograd is on. Of the model only the CLIP is loaded, no weight is copied, and
    everything, torch's random state included, is as it was afterwards, whatever ends the block.
    """
    management = comfy.model_management
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        stack.callback(management.soft_empty_cache)
        clip = without_streaming(clip, stack)
        management.load_models_gpu([clip.patcher], memory_required=ACTIVATIONS)
        set_for_training(stack)
        encoder = encoders(clip)[key]
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(ordinary_weights(encoder.model))
        for module in lean_modules(encoder.model):
            stack.enter_context(lean(module, recast))
        # As the host does before it encodes; clip skip has no say in what is compared.
        stack.callback(encoder.model.reset_clip_options)
        encoder.model.reset_clip_options()
        encoder.model.set_clip_options({"execution_device": clip.patcher.load_device})
        tolerant = Tolerant(storages(encoder.model))

        def pooled(prompts: Sequence[str], embedding: Embedding) -> Tensor:
            management.throw_exception_if_processing_interrupted()
            known = tokenizer_with(clip, {key: encoder}, Known({embedding.name: embedding}))
            tokenizer = getattr(known, encoder.attribute)
            windows = [tokenizer.tokenize_with_weights(prompt) for prompt in prompts]
            if any(len(of_prompt) > 1 for of_prompt in windows):
                raise UserError(
                    f"With {len(embedding.vectors[key])} vectors the embedding {embedding.name!r} does not fit into "
                    "one window of 75 tokens with the words around it, which is all that can be compared with "
                    "pictures. Take fewer vectors."
                )
            with tolerant, tolerant.keeping():
                return encoder.model.encode([[token for token, _ in window] for [window] in windows])[1]

        yield pooled
