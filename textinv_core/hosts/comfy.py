"""Training on the MODEL, CLIP and VAE objects of a ComfyUI graph, as they are. The only module that imports `comfy`.

The host's own code does everything it can do: parsing prompts and their weights, windows of 75 tokens, clip skip,
what a family conditions on besides text, its noise schedule and prediction type.
"""

import copy
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor

from ..embedding import Embedding
from ..noise import NoiseSchedule
from ..prompts import read_name
from .base import Lookup, check_unweighted, check_widths
from .weights import checkpointing, lean, ordinary_weights, replaced_method, storages, tolerating_inplace

PRECISIONS = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Attentions of the host that cannot be trained through: gradients end there, or it fails.
WITHOUT_BACKWARD = {"attention_sage", "attention3_sage", "attention_flash", "attention_comfy_kitchen_int8"}


# Text encoders and their embeddings


class Encoder(NamedTuple):
    """One text encoder of a CLIP: where its tokenizer hangs, that tokenizer, and its model."""

    attribute: str
    tokenizer: SDTokenizer
    model: SDClipModel

    @property
    def table(self) -> Any:
        """The module that looks up the vectors of token ids."""
        return self.model.transformer.get_input_embeddings()


def encoders(clip: Any) -> dict[str, Encoder]:
    """The text encoders of `clip` that take embeddings, by encoder key.

    Raises ValueError, naming the text encoder, where none does.
    """
    found = {}
    for attribute, tokenizer in vars(clip.tokenizer).items():
        model = getattr(clip.cond_stage_model, attribute, None)
        reads_embeddings = isinstance(tokenizer, SDTokenizer) and tokenizer.embedding_directory is not None
        if reads_embeddings and isinstance(model, SDClipModel):
            found[tokenizer.embedding_key] = Encoder(attribute, tokenizer, model)
    if not found:
        raise ValueError(
            f"ComfyUI cannot use embeddings with this text encoder ({type(clip.cond_stage_model).__name__}), "
            "so none can be made for it."
        )
    return found


def widths(clip: Any) -> dict[str, int]:
    """Encoder key -> the width of the vectors that encoder takes."""
    return {key: encoder.table.weight.shape[1] for key, encoder in encoders(clip).items()}


def text_vectors(clip: Any, text: str) -> dict[str, Tensor]:
    """What the text encoders see of `text`: encoder key -> the vectors of its tokens, float32 [tokens, dim].

    Only the table of tokens is used, neither start nor end tokens, no transformer. `embedding:<name>` in the text
    gives that embedding's vectors. Raises ValueError where the text weights words, which vectors cannot hold.
    """
    clip.load_model()
    device = clip.patcher.load_device
    found = {}
    for key, encoder in encoders(clip).items():
        windows = encoder.tokenizer.tokenize_with_weights(text, return_word_ids=True)
        tokens = [(token, weight) for window in windows for token, weight, word in window if word != 0]
        check_unweighted(text, [weight for _, weight in tokens])
        rows = [torch.empty(0, encoder.table.weight.shape[1])]
        for token, _ in tokens:
            if not torch.is_tensor(token):
                token = encoder.table(torch.tensor([token], device=device), out_dtype=torch.float32)
            rows.append(token.reshape(1, -1).to("cpu", torch.float32))
        found[key] = torch.cat(rows)
    return found


def keeps_first_tokens(clip: Any) -> bool:
    """Whether A1111 cuts an init text that has more tokens than vectors (CLIP-L), or samples it evenly (OpenCLIP)."""
    return "clip_l" in encoders(clip)


def check_fits(clip: Any, embedding: Embedding) -> None:
    """Raise ValueError unless `embedding` has vectors of the right width for every encoder of `clip`."""
    check_widths(embedding, widths(clip), "CLIP", type(clip.cond_stage_model).__name__)


def _try_get_embedding(host_finds: Any, name: str, vectors: Iterator[Tensor], text: str) -> tuple[Any, str, str]:
    """`SDTokenizer._try_get_embedding`, for one more name: vectors, name, and the text left over.

    vectors: yields what to put, occurrence by occurrence.
    """
    found, leftover = read_name(text)
    return (next(vectors), found, leftover) if found == name else host_finds(text)


def tokenizer_with(clip: Any, name: str, lookup: Lookup) -> Any:
    """A copy of `clip.tokenizer` for which `embedding:<name>` is what `lookup` gives. For one prompt where lookup
    depends on the occurrence."""
    tokenizer = copy.copy(clip.tokenizer)
    for key, encoder in encoders(clip).items():

        def occurrences(key: str = key) -> Iterator[Tensor]:
            yield from (lookup(key, occurrence) for occurrence in itertools.count())

        own = copy.copy(encoder.tokenizer)
        own._try_get_embedding = partial(_try_get_embedding, encoder.tokenizer._try_get_embedding, name, occurrences())
        setattr(tokenizer, encoder.attribute, own)
    return tokenizer


def apply_embedding(clip: Any, embedding: Embedding) -> Any:
    """A clone of `clip` that knows `embedding:<name>`, before any file of that name. Raises as `check_fits`."""
    check_fits(clip, embedding)
    applied = clip.clone()
    applied.tokenizer = tokenizer_with(clip, embedding.name, lambda key, _: embedding.vectors[key])
    return applied


# Pictures and latents


def latent_multiple(vae: Any) -> int:
    """Pixels a side of a latent's cell; pictures are cropped to multiples of it."""
    return int(vae.spacial_compression_encode())


def encode_images(model: Any, vae: Any, images: Sequence[Tensor]) -> list[Tensor]:
    """Pictures float32 [H, W, 3] in 0..1 -> latents float32 [C, h, w] on the CPU, scaled as the model takes them."""
    return [model.model.process_latent_in(vae.encode(image[None, ..., :3]))[0].float().cpu() for image in images]


def generate(model: Any, clip: Any, vae: Any, prompt: str, latent: Tensor, steps: int, seed: int) -> Tensor:
    """A picture float32 [1, H, W, 3] for `prompt`, of the size of `latent` [C, h, w]; euler, CFG 7."""
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
    empty = torch.zeros_like(latent)[None]
    noise = comfy.sample.prepare_noise(empty, seed)
    samples = comfy.sample.sample(
        model, noise, steps, 7.0, "euler", "normal", positive, negative, empty, seed=seed, disable_pbar=True
    )
    return vae.decode(samples)


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Put torch's random state back afterwards: sampling seeds the global generators."""
    with torch.random.fork_rng():
        yield


# Training


def differentiable_attention(attend: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The attention the host was started with, or pytorch's in place of one that has no backward."""
    return (attention_pytorch if attend.__name__ in WITHOUT_BACKWARD else attend)(*args, **kwargs)


@contextmanager
def encoded_together(clip: Any, prompts: Sequence[dict[str, list]]) -> Iterator[Iterator[dict[str, list]]]:
    """Let the host encode tokenised prompts one by one, as it must, and each text encoder run once for all of them.

    Yields the prompts in turn; the host has to encode each before the next. The first time an encoder is asked, it
    encodes the windows of all prompts; later it hands out what is already there. Text encoders are deep and narrow, and
    their weights may have to be cast: a batch of prompts costs little more than one.
    """
    with ExitStack() as stack:
        current = 0

        def handing_out(encode: Any, windows: list[list[list]]) -> Any:
            starts = [0, *itertools.accumulate(len(each) for each in windows)]
            results: list[Any] = []

            def hand_out(to_encode: list[list]) -> Any:
                here = slice(starts[current], starts[current + 1])
                if not results:
                    results.append(encode([window for each in windows for window in each]))
                z, pooled, *extra = results[0]
                z, pooled = z[here], None if pooled is None else pooled[here]
                extra = [{key: value[here] for key, value in each.items()} for each in extra]
                if len(to_encode) == len(windows[current]):
                    return z, pooled, *extra
                # Where words have weights, the host asks for an empty prompt behind the windows.
                z_empty, pooled_empty, *_ = encode(to_encode[len(windows[current]) :])
                return torch.cat([z, z_empty]), None if pooled is None else torch.cat([pooled, pooled_empty]), *extra

            return hand_out

        for encoder in encoders(clip).values() if len(prompts) > 1 else ():
            key = encoder.attribute if encoder.attribute in prompts[0] else encoder.attribute.removeprefix("clip_")
            windows = [[[token for token, _ in window] for window in prompt.get(key, [])] for prompt in prompts]
            # T5 pads to no common length; it has to take its prompts one by one.
            if len({len(window) for each in windows for window in each}) == 1 and all(windows):
                stack.enter_context(
                    replaced_method(encoder.model, "encode", lambda encode, all=windows: handing_out(encode, all))
                )

        def turn() -> Iterator[dict[str, list]]:
            nonlocal current
            for current, prompt in enumerate(prompts):  # noqa: B007
                yield prompt

        yield turn()


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


def _recast(module: Any, like: Tensor) -> Tensor:
    return comfy.ops.cast_bias_weight(module, dtype=like.dtype, device=like.device, bias_dtype=like.dtype)[0]


def fingerprint(model: Any) -> str:
    """16 hex digits that tell base models apart: a hash of every weight's name, shape and first values.

    Of the weights without the patches on them: with any LoRA a model is the same one.
    """
    digest = hashlib.sha256()
    for name, weight in model.model.diffusion_model.named_parameters(prefix="diffusion_model"):
        if name in model.backup:
            weight = model.backup[name].weight
        digest.update(f"{name}{list(weight.shape)}".encode())
        digest.update(weight.detach().flatten()[:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


class ComfyModel:
    """A `hosts.base.TrainableModel` on a loaded ModelPatcher and CLIP. Made by `trainable`, and valid inside it."""

    def __init__(self, model: Any, clip: Any, stack: ExitStack):
        self.device = model.load_device
        self.dtype = model.model.get_dtype_inference()
        self.noise_schedule = _noise_schedule(model.model.model_sampling)
        self._model, self._base, self._stack = model, model.model, stack
        self._sigmas = model.model.model_sampling.sigmas.to(self.device)
        self._text_weights = storages(clip.cond_stage_model)
        # The host loads the text encoder before each prompt, and may evict the rest of the model for it.
        self._clip = copy.copy(clip)
        self._clip.load_model = lambda *_: clip.patcher

    def conditions(
        self, prompts: Sequence[str], name: str, lookups: Sequence[Lookup], latents: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        clips = [copy.copy(self._clip) for _ in prompts]
        for clip, lookup in zip(clips, lookups, strict=True):
            clip.tokenizer = tokenizer_with(clip, name, lookup)
        tokens = [clip.tokenize(prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        with encoded_together(self._clip, tokens) as turn, tolerating_inplace(self._text_weights):
            encoded = [self._clip.encode_from_tokens_scheduled(each, show_pbar=False) for each in turn]
        return [self._model_conds(cond[:1], latent) for cond, latent in zip(encoded, latents, strict=True)]

    def _model_conds(self, encoded: list, latent: Tensor) -> dict[str, Any]:
        """What the model wants of a conditioning for one picture, its sizes and inpainting channels included."""
        latent = latent[None].to(self.device)
        [cond] = comfy.samplers.encode_model_conds(
            self._base.extra_conds,
            comfy.sampler_helpers.convert_cond(encoded),
            latent,
            self.device,
            "positive",
            latent_image=latent,
        )
        return {
            key: value.process_cond(batch_size=1, area=None, device=self.device)
            for key, value in cond["model_conds"].items()
        }

    def predict(self, noisy: Tensor, t: Tensor, conditions: Sequence[dict[str, Any]]) -> Tensor:
        together = all(comfy.samplers.cond_equal_size(c, conditions[0]) for c in conditions)
        if not together:
            return torch.cat([self.predict(noisy[i : i + 1], t[i : i + 1], [c]) for i, c in enumerate(conditions)])
        sigma = self._sigmas[t.to(self.device)]
        options = dict(self._model.model_options.get("transformer_options", {}))
        options["wrappers"] = comfy.patcher_extension.copy_nested_dicts(self._model.wrappers)
        options.update(sigmas=sigma, cond_or_uncond=[0] * len(conditions))
        options.setdefault("optimized_attention_override", differentiable_attention)
        arguments = {**comfy.samplers.cond_cat(conditions), "transformer_options": options}
        wrapper = self._model.model_options.get("model_function_wrapper")
        if wrapper is None:
            denoised = self._base.apply_model(noisy, sigma, **arguments)
        else:
            call = {"input": noisy, "timestep": sigma, "c": arguments, "cond_or_uncond": options["cond_or_uncond"]}
            denoised = wrapper(self._base.apply_model, call)
        return self.noise_schedule.prediction(denoised, noisy, t)

    def checkpoint_activations(self) -> None:
        self._stack.enter_context(checkpointing(self._base.diffusion_model))


@contextmanager
def trainable(model: Any, clip: Any, latent: Tensor, batch_size: int, precision: str = "auto") -> Iterator[ComfyModel]:
    """Load `model` and `clip`, as patched as they are, and make them differentiable for the length of the block.

    latent: [C, h, w], the largest there will be, with `batch_size` for how much memory to leave free.
    precision: "auto" (what the host computes in), "fp32", "bf16" or "fp16".

    No weight is copied, and everything is as it was afterwards, whatever ends the block.
    """
    dtype = PRECISIONS[precision]
    # Weights that the host streams to the GPU at will could be gone before backward: it loads those once more.
    text = clip
    if clip.patcher.is_dynamic():
        text = clip.clone(disable_dynamic=True)
        text.cond_stage_model = text.patcher.model
    own = model.clone(disable_dynamic=True) if model.is_dynamic() or dtype is not None else model
    if dtype is not None:
        own.set_model_compute_dtype(dtype)
    base, encoder = own.model, text.cond_stage_model
    management = comfy.model_management
    was_training = management.in_training
    with ExitStack() as stack:
        for patcher, given in ((own, model), (text.patcher, clip.patcher)):
            if patcher is not given:
                stack.callback(management.unload_model_and_clones, patcher)
        # Three times what sampling takes: a guess, which only decides how much of a big model stays in RAM.
        activations = 3 * own.memory_required([batch_size, *latent.shape])
        management.load_models_gpu([own, text.patcher], memory_required=activations)
        stack.callback(own.cleanup)
        own.pre_run()
        stack.callback(setattr, management, "in_training", was_training)
        management.in_training = True
        # Weights kept in RAM are else cast through buffers that the next layer overwrites: backward would read those.
        stack.callback(setattr, management, "NUM_STREAMS", management.NUM_STREAMS)
        management.NUM_STREAMS = 0
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(ordinary_weights(base, encoder))
        for module in (m for root in (base, encoder) for m in root.modules()):
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and hasattr(module, "forward_comfy_cast_weights"):
                stack.enter_context(lean(module, _recast))
        yield ComfyModel(own, text, stack)
    management.soft_empty_cache()
