"""Training on the MODEL, CLIP and VAE objects of a ComfyUI graph, as they are. The only module that imports `comfy`,
with `comfy_parts`, `comfy_text` and `comfy_vision`.

The host's own code does everything it can do: parsing prompts and their weights, windows of 75 tokens, clip skip,
what a family conditions on besides text, its noise schedule and prediction type.
"""

import copy
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import comfy.hooks
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from ..devices import upload
from ..embedding import Embedding
from ..errors import UserError
from ..formats import load_embedding
from ..noise import NoiseSchedule
from .autograd import is_made_of_others, is_plain, replaced_method
from .base import Host, Known, Lookup, Occurrences, Sampling, TrainableModel
from .comfy_parts import identities, transformer_options
from .comfy_prefix import Prefixes
from .comfy_text import ComfyEncoder, encode_together, encoded, encoders, tokenizer_with
from .marks import mark
from .precision import dtype_of

log = logging.getLogger("textinv")

# Attentions of the host that cannot be trained through: gradients end there, or it fails.
WITHOUT_BACKWARD = {"attention_sage", "attention3_sage", "attention_flash", "attention_comfy_kitchen_int8"}
# What pictures are generated with where nothing is said.
SAMPLER, SCHEDULER = "euler", "normal"


# Training


def without_streaming(clip: Any, stack: ExitStack) -> Any:
    """`clip`, or where the host streams its weights to the GPU at will, for as long as `stack` lasts, one whose are
    loaded once more: those could be gone before backward."""
    if not clip.patcher.is_dynamic():
        return clip
    clip = clip.clone(disable_dynamic=True)
    clip.cond_stage_model = clip.patcher.model
    stack.callback(comfy.model_management.unload_model_and_clones, clip.patcher)
    return clip


def set_for_now(stack: ExitStack, name: str, value: Any) -> None:
    """Set a variable of `comfy.model_management` for as long as `stack` lasts."""
    stack.callback(setattr, comfy.model_management, name, getattr(comfy.model_management, name))
    setattr(comfy.model_management, name, value)


def set_for_training(stack: ExitStack) -> None:
    """Set the host's flags for forward and backward, for as long as `stack` lasts."""
    set_for_now(stack, "in_training", True)
    # Weights kept in RAM are else cast through buffers that the next layer overwrites: backward would read those.
    set_for_now(stack, "NUM_STREAMS", 0)


def lean_modules(*modules: nn.Module) -> Iterator[nn.Module]:
    """The modules in `modules` that `autograd.lean` is for: Linear and Conv, of weights that the host itself casts."""
    for module in (m for root in modules for m in root.modules()):
        weight = getattr(module, "weight", None)
        is_hosts = isinstance(weight, Tensor) and (is_plain(weight) or is_made_of_others(weight))
        is_one = hasattr(module, "in_features") or isinstance(module, nn.modules.conv._ConvNd)
        if is_one and is_hosts and hasattr(module, "forward_comfy_cast_weights"):
            yield module


def recast(module: Any, like: Tensor) -> Tensor:
    """What `autograd.lean` asks for, as the host casts weights."""
    return comfy.ops.cast_bias_weight(module, dtype=like.dtype, device=like.device, bias_dtype=like.dtype)[0]


def differentiable_attention(attend: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The attention the host was started with, or pytorch's in place of one that has no backward."""
    return (attention_pytorch if attend.__name__ in WITHOUT_BACKWARD else attend)(*args, **kwargs)


def _noise_schedule(sampling: Any) -> NoiseSchedule:
    """Read a model's coefficients off its own functions, which are linear in latent, noise and prediction."""
    sigmas = sampling.sigmas.detach().to("cpu", torch.float64)
    zero, one = torch.zeros_like(sigmas), torch.ones_like(sigmas)
    return NoiseSchedule(
        signal=sampling.noise_scaling(sigmas, zero.clone(), one),
        noise=sampling.noise_scaling(sigmas, one.clone(), zero),
        skip=sampling.calculate_denoised(sigmas, zero, one),
        out=sampling.calculate_denoised(sigmas, one, zero),
    )


class _EachMissingNameOnce(logging.Filter):
    """Lets the host's warning of an embedding it does not find pass once a name: it comes with every prompt encoded."""

    def __init__(self):
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        is_again = text in self._told
        if text.startswith("warning, embedding:"):
            self._told.add(text)
        return not is_again


def hooks_model(clip: Any) -> bool:
    """Whether `clip` has its prompts change the model that samples them: by hooks, such as LoRAs, that it carries."""
    hooks = clip.apply_hooks_to_conds.hooks if clip.apply_hooks_to_conds else []
    return any(not isinstance(hook, comfy.hooks.WeightHook) or hook._strength_model for hook in hooks)


class ComfyModel(TrainableModel):
    """On a loaded ModelPatcher and CLIP."""

    def __init__(self, model: Any, clip: Any, encoders: Mapping[str, ComfyEncoder], guidance: float, stack: ExitStack):
        super().__init__(stack)
        self._encoders, self._prefixes = encoders, {key: Prefixes() for key in encoders}
        # What the host's nodes would have put into a conditioning.
        self._told = {"guidance": guidance} if guidance else {}
        self.device = model.load_device
        self.dtype = model.model.get_dtype_inference()
        self.modules = model.model, clip.cond_stage_model
        self.blocks, self.tolerant_blocks = (model.model.diffusion_model,), (clip.cond_stage_model,)
        self._model, self._base = model, model.model
        # The host loads the text encoder before each prompt, and may evict the rest of the model for it.
        self._clip = copy.copy(clip)
        self._clip.load_model = lambda *_: clip.patcher
        # By a schedule of hooks it changes the text encoder's weights, which backward needs as they were in forward.
        self._clip.use_clip_schedule = False

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:  # type: ignore[override]
        return _noise_schedule(self._base.model_sampling)

    @cached_property
    def _sigmas(self) -> Tensor:
        return self._base.model_sampling.sigmas.to(self.device)

    @cached_property
    def _sample_sigmas(self) -> Tensor:
        """What a sampler would be given that takes every step there is: from the most noise to none."""
        return torch.cat([self._sigmas.flip(0), self._sigmas.new_zeros(1)])

    @cached_property
    def _transformer_options(self) -> dict[str, Any]:
        """What the network is told besides; the conditions and noise levels of a batch come on top."""
        options = transformer_options(self._model)
        options.setdefault("optimized_attention_override", differentiable_attention)
        return options

    def conditions(
        self, prompts: Sequence[str], lookups: Sequence[Mapping[str, Lookup]], latents: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        clips = [copy.copy(self._clip) for _ in prompts]
        for clip, of_prompt in zip(clips, lookups, strict=True):
            clip.tokenizer = tokenizer_with(clip, self._encoders, Occurrences(of_prompt))
        tokens = [clip.tokenize(prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        with ExitStack() as stack:
            stack.enter_context(self.tolerant)  # residuals are added in place
            stack.enter_context(self.tolerant.keeping())
            for key, encoder in self._encoders.items():
                stack.enter_context(self._prefixes[key].reused(encoder.model))
            encoded = encode_together(self._clip, self._encoders, tokens)
        return [self._model_conds(cond[:1], latent) for cond, latent in zip(encoded, latents, strict=True)]

    def _model_conds(self, encoded: list, latent: Tensor) -> dict[str, Any]:
        """What the model wants of a conditioning for one picture, its sizes and inpainting channels included."""
        latent = latent[None].to(self.device)
        [cond] = comfy.samplers.encode_model_conds(
            self._base.extra_conds,
            [cond | self._told for cond in comfy.sampler_helpers.convert_cond(encoded)],
            latent,
            self.device,
            "positive",
            latent_image=latent,
            latent_shapes=[latent.shape],
        )
        if unknown := self._told.keys() - cond["model_conds"].keys():
            log.warning(f"textinv: this model has no use for {', '.join(unknown)}; it is trained as without.")
            self._told = {}
        return {
            key: value.process_cond(batch_size=1, area=None, device=self.device)
            for key, value in cond["model_conds"].items()
        }

    def _fit_together(self, conditions: Sequence[dict[str, Any]]) -> bool:
        return all(comfy.samplers.cond_equal_size(c, conditions[0]) for c in conditions)

    def _predict(self, noisy: Tensor, t: Tensor, conditions: Sequence[dict[str, Any]]) -> Tensor:
        sigma = self._sigmas[t]
        options = self._transformer_options | {
            "sigmas": sigma,
            "sample_sigmas": self._sample_sigmas,
            "cond_or_uncond": [0] * len(conditions),
            "uuids": [uuid4() for _ in conditions],  # those of a step come never again, for whoever keeps what was
        }
        arguments = {**comfy.samplers.cond_cat(conditions), "transformer_options": options}
        wrapper = self._model.model_options.get("model_function_wrapper")
        if wrapper is None:
            denoised = self._base.apply_model(noisy, sigma, **arguments)
        else:
            call = {"input": noisy, "timestep": sigma, "c": arguments, "cond_or_uncond": options["cond_or_uncond"]}
            denoised = wrapper(self._base.apply_model, call)
        return self.noise_schedule.prediction(denoised, noisy, t)

    def differentiable(self, operation: Any) -> Any | None:
        if not str(operation).startswith("comfy_kitchen."):
            return None
        eager = import_module("comfy_kitchen.backends.eager")  # here, as the host can do without it

        return getattr(eager, operation.__name__, None)

    def lean_modules(self) -> Iterator[nn.Module]:
        return lean_modules(*self.modules)

    def recast(self, module: Any, like: Tensor) -> Tensor:
        return recast(module, like)

    def check_interrupted(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()


class ComfyHost(Host):
    """The MODEL, CLIP and VAE of a graph; what only concerns text encoders needs the CLIP alone.

    precision: one of `precision.PRECISIONS`, what the model computes in while it is trained on; `auto` as in sampling.
    guidance: what models with guidance built in (Flux dev, HunyuanVideo) are told while they are trained on, as by
    FluxGuidance; 0 is the host's own default for each. Others have no use for it.
    """

    called = "CLIP"
    interrupts = (comfy.model_management.InterruptProcessingException,)

    def __init__(self, clip: Any, model: Any = None, vae: Any = None, precision: str = "auto", guidance: float = 0.0):
        self._clip, self._model, self._vae, self._guidance = clip, model, vae, guidance
        self._precision, self._dtype = precision, None if precision == "auto" else dtype_of(precision)
        self._told_of_hooks = False

    @cached_property
    def encoders(self) -> dict[str, ComfyEncoder]:  # type: ignore[override]
        by_key = encoders(self._clip)
        if not by_key:
            raise UserError(
                f"No embedding can be made for this text encoder ({self.encoder_name}): ComfyUI's tokenizer for it "
                "does not ask for the embeddings that a prompt names, so nothing could ever be put in their place."
            )
        return by_key

    @property
    def encoder_name(self) -> str:
        return type(self._clip.cond_stage_model).__name__

    @property
    def left_out(self) -> list[str]:
        taking = [encoder.model for encoder in self.encoders.values()]
        models = self._clip.cond_stage_model.named_children()
        return [name for name, model in models if hasattr(model, "encode_token_weights") and model not in taking]

    def apply(self, *embeddings: Embedding) -> Any:
        """A clone of the CLIP that knows `embedding:<name>`, before any file of that name. Raises as `check_fits`."""
        for embedding in embeddings:
            self.check_fits(embedding)
        applied = self._clip.clone()
        applied.tokenizer = tokenizer_with(self._clip, self.encoders, Known({each.name: each for each in embeddings}))
        return applied

    def _encoded(self, embedding: Embedding) -> list[Tensor]:
        return encoded(self.apply(embedding), embedding.name)

    def _encoded_from(self, file: Path, embedding: Embedding) -> list[Tensor]:
        if self.unread:
            return self._encoded(replace(load_embedding(file), name=embedding.name))
        with TemporaryDirectory() as folder:  # the host looks through all that is below an embeddings folder
            shutil.copy(file, Path(folder, f"{embedding.name}{file.suffix}"))
            clip = self._clip.clone()
            clip.tokenizer = copy.copy(clip.tokenizer)
            for encoder in self.encoders.values():
                own = copy.copy(encoder.tokenizer)
                own.embedding_directory = [folder]
                setattr(clip.tokenizer, encoder.attribute, own)
            return encoded(clip, embedding.name)

    def names(self, prompt: str, name: str) -> bool:
        asked: set[str] = set()

        def find(key: str, found: str) -> Tensor:
            asked.add(found)
            return torch.zeros(1, self.encoders[key].width)

        clip = copy.copy(self._clip)
        clip.tokenizer = tokenizer_with(clip, self.encoders, find)
        try:
            clip.tokenize(prompt)
        except IndexError:  # the host's own, of an `embedding:` without a name
            return False
        return name in asked

    @property
    def latent_multiple(self) -> int:
        return int(self._vae.spacial_compression_encode())

    @torch.random.fork_rng()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        scaled = self._model.model.process_latent_in
        encoded = []
        for image in images:
            comfy.model_management.throw_exception_if_processing_interrupted()
            encoded.append(scaled(self._vae.encode(image[None, ..., :3]))[0].float().cpu())
        return encoded

    def encoding(self) -> str:
        scaling = mark(self._model.get_model_object("latent_format"))
        return f"{super().encoding()} {scaling} {self._vae.device}"

    def decode(self, latents: Tensor) -> Tensor:
        pixels = self._vae.decode(latents)
        return pixels.reshape(-1, *pixels.shape[-3:])

    @property
    def samplers(self) -> list[str]:
        return comfy.samplers.KSampler.SAMPLERS

    @property
    def schedulers(self) -> list[str]:
        return comfy.samplers.KSampler.SCHEDULERS

    @torch.random.fork_rng()  # the host seeds the global generators
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        shape: Sequence[int],
        sampling: Sampling,
        embeddings: Sequence[Embedding] = (),
    ) -> Tensor:
        """One by one, each of them as CLIPTextEncode, EmptyLatentImage, KSampler and VAEDecode make it, to the bit."""
        clip, management = self.apply(*embeddings), comfy.model_management
        unwanted = clip.encode_from_tokens_scheduled(clip.tokenize(sampling.negative))
        empty = torch.zeros(1, *shape, device=management.intermediate_device(), dtype=management.intermediate_dtype())
        empty = comfy.sample.fix_empty_latent_channels(self._model, empty)
        how = sampling.steps, sampling.guidance, sampling.sampler or SAMPLER, sampling.scheduler or SCHEDULER
        pictures = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            wanted = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
            noise = comfy.sample.prepare_noise(empty, seed)
            latents = comfy.sample.sample(
                self._model, noise, *how, wanted, unwanted, empty, seed=seed, disable_pbar=True
            )
            pictures.append(self.decode(latents))
        return torch.cat(pictures)

    def _tell_of_hooks(self) -> None:
        if hooks_model(self._clip) and not self._told_of_hooks:
            self._told_of_hooks = True
            log.warning(
                "textinv: The CLIP has hooks (Set CLIP Hooks) that change the MODEL while a picture is made, as a hook "
                "LoRA with a strength_model does. Training leaves the MODEL as it is without them, so what is learnt "
                "may not suit pictures made with them. To train with such a LoRA, put it on the MODEL and the CLIP "
                "with LoraLoader instead."
            )

    def _load(self, latent: Tensor, batch_size: int, stack: ExitStack) -> ComfyModel:
        management, model, dtype = comfy.model_management, self._model, self._dtype
        if comfy.sample.fix_empty_latent_channels(model, torch.zeros_like(latent)[None]).is_nested:
            raise UserError(
                "Embeddings cannot be trained on this model: what it makes is of several kinds at once, such as "
                "pictures and sound, and pictures alone are no example for it."
            )
        stack.callback(management.soft_empty_cache)
        self._tell_of_hooks()
        clip = without_streaming(self._clip, stack)
        if model.is_dynamic() or dtype is not None:
            model = model.clone(disable_dynamic=True)
            stack.callback(management.unload_model_and_clones, model)
        if dtype is not None:
            model.set_model_compute_dtype(dtype)
        # Three times what sampling takes: a guess, which only decides how much of a big model stays in RAM.
        activations = 3 * model.memory_required([batch_size, *latent.shape])
        if self._vae is not None:  # which the host leaves on the GPU until it knows of something that needs the room
            management.unload_model_and_clones(self._vae.patcher)
        management.load_models_gpu([model, clip.patcher], memory_required=activations)
        stack.callback(model.cleanup)
        model.pre_run()
        each_once = _EachMissingNameOnce()
        logging.root.addFilter(each_once)
        stack.callback(logging.root.removeFilter, each_once)
        set_for_training(stack)
        # Else each prompt's conditioning goes by way of the CPU, which waits for the GPU, forward and backward.
        set_for_now(stack, "intermediate_device", lambda: model.load_device)
        if embedder := getattr(model.model, "embedder", None):  # of sizes, which SDXL counts on the CPU otherwise
            there = model.load_device
            stack.enter_context(
                replaced_method(embedder, "forward", lambda forward: lambda sizes: forward(upload(sizes, there)))
            )
        return ComfyModel(model, clip, encoders(clip), self._guidance, stack)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self._model.model.diffusion_model.named_parameters(prefix="diffusion_model"):
            yield name, self._model.backup[name].weight if name in self._model.backup else weight

    def told(self) -> dict[str, Any]:
        return {"precision": self._precision, "guidance": self._guidance}

    def identities(self) -> dict[str, str]:
        return identities(self._clip, self._model, self._vae, self._dtype, self._guidance)

    def found(self, name: str) -> str | None:
        vectors = {key: encoder.found(name) for key, encoder in self.encoders.items()}
        return None if all(each is None for each in vectors.values()) else mark(vectors)
