"""Training and generating with a diffusers pipeline of SD1.x, SD2.x or SDXL: the host where there is no ComfyUI.

Prompts mean what they mean in ComfyUI: `embedding:<name>`, `(weights:1.2)`, windows of 75 tokens. Other than there, an
embedding is only known if it was handed over. `pipelines.load` reads models from disk; this module and that one are
the only ones that import `diffusers`.
"""

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Generator, Tensor

from ..embedding import Embedding
from ..noise import NoiseSchedule
from .base import Lookup, check_unweighted, check_widths
from .pipelines import load as load
from .weights import checkpointing, lean, ordinary_weights, replaced_method
from .windows import Token, tokens, windows

log = logging.getLogger("textinv")

CLIP_H_WIDTH = 1024
MOST_REPEATS = 4  # of a text, for a batch to be one; as ComfyUI
PIXELS_A_CELL = 8  # what SDXL takes a side of a latent's cell for, in pixels, when told of sizes

# Name in a prompt, as an encoder key comes to it -> the vectors [n, dim] to put there, None for none known.
Find = Callable[[str, str], Tensor | None]


# Text encoders and their embeddings


class Encoder(NamedTuple):
    """One text encoder of a pipeline: its tokenizer and its model."""

    tokenizer: Any
    model: Any

    @property
    def table(self) -> Any:
        """The module that looks up the vectors of token ids."""
        return self.model.get_input_embeddings()

    @property
    def window(self) -> int:
        """Tokens a window, start and end included."""
        return self.model.config.max_position_embeddings

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def windows(self, groups: list[list[Token]]) -> list[list[Token]]:
        tokenizer = self.tokenizer
        return windows(groups, self.window, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def encoders(pipe: Any) -> dict[str, Encoder]:
    """The text encoders of `pipe` by encoder key, which are ComfyUI's: clip_l; clip_h (SD2); clip_l, clip_g (SDXL)."""
    first = Encoder(pipe.tokenizer, pipe.text_encoder)
    if _is_sdxl(pipe):
        return {"clip_l": first, "clip_g": Encoder(pipe.tokenizer_2, pipe.text_encoder_2)}
    return {"clip_h" if first.table.weight.shape[1] == CLIP_H_WIDTH else "clip_l": first}


def _is_sdxl(pipe: Any) -> bool:
    return getattr(pipe, "text_encoder_2", None) is not None


def widths(pipe: Any) -> dict[str, int]:
    """Encoder key -> the width of the vectors that encoder takes."""
    return {key: encoder.table.weight.shape[1] for key, encoder in encoders(pipe).items()}


def text_vectors(pipe: Any, text: str) -> dict[str, Tensor]:
    """What the text encoders see of `text`: encoder key -> the vectors of its tokens, float32 [tokens, dim].

    Only the table of tokens is used, neither start nor end tokens, no transformer. Raises ValueError where the text
    weights words, which vectors cannot hold.
    """
    found = {}
    for key, encoder in encoders(pipe).items():
        seen = [token for group in tokens(text, encoder.ids, _unknown) for token in group]
        check_unweighted(text, [token.weight for token in seen])
        ids = torch.tensor([token.what for token in seen], dtype=torch.long)
        weight = encoder.table.weight
        found[key] = weight.detach()[ids.to(weight.device)].to("cpu", torch.float32, copy=True)
    return found


def keeps_first_tokens(pipe: Any) -> bool:
    """Whether A1111 cuts an init text that has more tokens than vectors (CLIP-L), or samples it evenly (OpenCLIP)."""
    return "clip_l" in encoders(pipe)


def check_fits(pipe: Any, embedding: Embedding) -> None:
    """Raise ValueError unless `embedding` has vectors of the right width for every encoder of `pipe`."""
    check_widths(embedding, widths(pipe), "model", type(pipe).__name__)


def nearest_words(pipe: Any, embedding: Embedding, count: int = 5) -> dict[str, list[list[tuple[str, float]]]]:
    """Encoder key -> for each vector, the `count` tokens nearest to it: the word, and the cosine similarity, -1 to 1.

    Tokens that a word goes on after have a hyphen behind them, as in `photo-`. Start and end tokens do not count.
    Raises ValueError as `check_fits`.
    """
    check_fits(pipe, embedding)
    found = {}
    for key, encoder in encoders(pipe).items():
        table = torch.nn.functional.normalize(encoder.table.weight.detach().float(), dim=1)
        # In double precision: the squares of what is finite are finite there.
        vectors = torch.nn.functional.normalize(embedding.vectors[key].double(), dim=1)
        similarity = vectors.to(table) @ table.T
        similarity[:, [encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id]] = -math.inf
        best = similarity.topk(min(count, len(table)))
        found[key] = [
            [(_word(encoder.tokenizer, token), value) for token, value in zip(ids, values, strict=True)]
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return found


def _word(tokenizer: Any, token: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(token) or f"token {token}"
    text = tokenizer.decode([token]).strip()
    return text if piece.endswith("</w>") else f"{text}-"


def _unknown(name: str) -> None:
    log.warning(f"textinv: the prompt names the embedding {name!r}, which is not loaded; it is left out.")


# Pictures and latents


def latent_multiple(pipe: Any) -> int:
    """Pixels a side of a latent's cell; pictures are cropped to multiples of it."""
    return 2 ** (len(pipe.vae.config.block_out_channels) - 1)


@torch.no_grad()
def encode_images(pipe: Any, images: Sequence[Tensor]) -> list[Tensor]:
    """Pictures float32 [H, W, 3] in 0..1 -> latents float32 [C, h, w] on the CPU, scaled as the model takes them.

    The middle of what the VAE holds possible, as in ComfyUI: the same picture gives the same latent.
    """
    vae = pipe.vae
    latents = []
    for image in images:
        pixels = (image[None, ..., :3].movedim(-1, 1) * 2 - 1).to(vae.device, vae.dtype)
        latents.append((vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor)[0].float().cpu())
    return latents


@torch.no_grad()
def generate(
    pipe: Any,
    prompt: str | Sequence[str],
    embeddings: Sequence[Embedding],
    *,
    negative: str = "",
    width: int,
    height: int,
    steps: int = 20,
    guidance: float = 7.0,
    seeds: Sequence[int],
) -> Tensor:
    """Pictures float32 [len(seeds), height, width, 3] in 0..1, all in one batch, one a seed.

    prompt: for all of them, or one each. embeddings: those that prompts can name. width, height: pixels, multiples of
    `latent_multiple`. guidance: at least 1, where `negative` has no effect. DPM-Solver++ of order 2, which adds no
    noise on the way: a picture depends on its own seed and prompt alone, up to rounding. Raises ValueError for other
    sizes, and as `check_fits`.
    """
    multiple = latent_multiple(pipe)
    if width <= 0 or height <= 0 or width % multiple or height % multiple:
        raise ValueError(
            f"A picture of {width}x{height} pixels cannot be generated: width and height must be multiples of "
            f"{multiple}."
        )
    model = DiffusersModel(pipe, embeddings, ExitStack())
    size = (pipe.unet.config.in_channels, height // multiple, width // multiple)
    count = len(seeds)
    prompts = [prompt, negative] if isinstance(prompt, str) else [*prompt, negative]
    *positive, unconditional = model.encode(prompts, [model.known] * len(prompts), [size[1:]] * len(prompts))
    conditions = (positive * count if isinstance(prompt, str) else positive) + [unconditional] * count
    sampler: Any = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    sampler.set_timesteps(steps)
    noise = [torch.randn(size, generator=Generator().manual_seed(seed)) for seed in seeds]
    noisy = torch.stack(noise).to(model.device) * sampler.init_noise_sigma
    for t in sampler.timesteps:
        predicted = model.predict(torch.cat([noisy, noisy]), t.repeat(2 * count), conditions)
        wanted, unwanted = predicted.float().split(count)
        noisy = sampler.step(unwanted + guidance * (wanted - unwanted), t, noisy, return_dict=False)[0]
    vae = pipe.vae
    pixels = vae.decode((noisy / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
    return (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()


# Training


class Condition(NamedTuple):
    """What the UNet is told for one picture.

    text: [1, tokens, dim]. For SDXL also pooled: [1, dim], the prompt as a whole; and sizes: float32 [1, 6], height
    and width, top and left of the crop, height and width to aim at, in pixels.
    """

    text: Tensor
    pooled: Tensor | None
    sizes: Tensor


def _noise_schedule(scheduler: Any) -> NoiseSchedule:
    """DDPM's noise (Ho et al. 2020, eq. 4) and what eps and v (Salimans & Ho 2022, app. D) say of the latent."""
    kept = scheduler.alphas_cumprod.to("cpu", torch.float64)
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return NoiseSchedule(signal, noise, skip=1 / signal, out=-noise / signal)
    if kind == "v_prediction":
        return NoiseSchedule(signal, noise, skip=signal, out=-noise)
    raise ValueError(f"This model predicts {kind!r}; embeddings are trained here on eps and v prediction.")


class DiffusersModel:
    """A `hosts.base.TrainableModel` on a pipeline, for gradients valid inside `trainable`; `generate` needs none.

    embeddings: those that prompts may name besides the one in training.
    """

    def __init__(self, pipe: Any, embeddings: Sequence[Embedding], stack: ExitStack):
        for embedding in embeddings:
            check_fits(pipe, embedding)
        self.device = pipe.unet.device
        self.dtype = pipe.unet.dtype
        self.noise_schedule = _noise_schedule(pipe.scheduler)
        self._pipe, self._stack = pipe, stack
        self._embeddings = {embedding.name: embedding for embedding in embeddings}

    def known(self, key: str, name: str) -> Tensor | None:
        """The vectors for encoder `key` of an embedding that is not in training."""
        if name in self._embeddings:
            return self._embeddings[name].vectors[key]
        return _unknown(name)

    def conditions(
        self, prompts: Sequence[str], name: str, lookups: Sequence[Lookup], latents: Sequence[Tensor]
    ) -> list[Condition]:
        def finding(lookup: Lookup) -> Find:
            occurrences = defaultdict(itertools.count)

            def find(key: str, named: str) -> Tensor | None:
                return lookup(key, next(occurrences[key])) if named == name else self.known(key, named)

            return find

        return self.encode(prompts, [*map(finding, lookups)], [tuple(latent.shape[-2:]) for latent in latents])

    def encode(
        self, prompts: Sequence[str], finds: Sequence[Find], cells: Sequence[tuple[int, ...]]
    ) -> list[Condition]:
        """Encode prompts, each for a latent of so many cells (height, width), with one run of each text encoder."""
        texts, pooled = [[] for _ in prompts], None
        for key, encoder in encoders(self._pipe).items():
            filled = [
                encoder.windows(tokens(prompt, encoder.ids, partial(find, key)))
                for prompt, find in zip(prompts, finds, strict=True)
            ]
            counts = [len(windows) for windows in filled]
            encoded, at_ends = _run(encoder, [window for windows in filled for window in windows], _is_sdxl(self._pipe))
            for text, of_prompt in zip(texts, encoded.split(counts), strict=True):
                text.append(of_prompt.flatten(0, 1))
            if at_ends is not None:
                pooled = [of_prompt[:1] for of_prompt in at_ends.split(counts)]
        return [
            # An embedding may have more vectors for one encoder, and need one window more there.
            Condition(
                torch.cat([part[: min(map(len, text))] for part in text], 1)[None],
                None if pooled is None else pooled[i],
                torch.tensor([[PIXELS_A_CELL * n for n in (*cells[i], 0, 0, *cells[i])]], dtype=torch.float32),
            )
            for i, text in enumerate(texts)
        ]

    def predict(self, noisy: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        # Attention to a text that comes several times over is attention to that text: so lengths become equal.
        lengths = [condition.text.shape[1] for condition in conditions]
        length = math.lcm(*lengths)
        if length > MOST_REPEATS * max(lengths):
            rows = enumerate(conditions)
            return torch.cat([self.predict(noisy[i : i + 1], t[i : i + 1], [each]) for i, each in rows])
        text = torch.cat([c.text.repeat(1, length // c.text.shape[1], 1) for c in conditions]).to(self.dtype)
        more = {}
        pooled = [c.pooled for c in conditions if c.pooled is not None]
        if pooled:
            sizes = torch.cat([c.sizes for c in conditions]).to(self.device)
            more = {"added_cond_kwargs": {"text_embeds": torch.cat(pooled).to(self.dtype), "time_ids": sizes}}
        noisy, t = noisy.to(self.dtype), t.to(self.device)
        return self._pipe.unet(noisy, t, encoder_hidden_states=text, return_dict=False, **more)[0]

    def checkpoint_activations(self) -> None:
        unet = self._pipe.unet
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            self._stack.enter_context(checkpointing(block))


def _run(encoder: Encoder, windows: list[list[Token]], penultimate: bool) -> tuple[Tensor, Tensor | None]:
    """What an encoder makes of N windows: [N, window, dim], and at their ends, projected, where it projects: [N, dim].

    penultimate: take the layer before the last, without the final norm, as SDXL does. (Configurations of SD2 leave the
    last layer out.) Tokens with weights are moved away from what an empty prompt has there, or towards it.
    """
    weighted = any(token.weight != 1.0 for window in windows for token in window)
    if weighted:
        windows = [*windows, *encoder.windows([])]
    model, table, end = encoder.model, encoder.table, encoder.tokenizer.eos_token_id
    vectors = {
        (n, place): token.what
        for n, window in enumerate(windows)
        for place, token in enumerate(window)
        if isinstance(token.what, Tensor)
    }
    ids = torch.tensor([[end if isinstance(what, Tensor) else what for what, _ in window] for window in windows])
    ids = ids.to(table.weight.device)
    rows = table(ids)
    if vectors:
        places = [torch.tensor(index, device=rows.device) for index in zip(*vectors, strict=True)]
        rows = rows.index_put(tuple(places), torch.stack([*vectors.values()]).to(rows))
    # Not all versions of transformers take vectors in place of ids; all look ids up here.
    with replaced_method(table, "forward", lambda _: lambda _: rows):
        output = model(ids, output_hidden_states=penultimate)
    text = output.hidden_states[-2] if penultimate else output.last_hidden_state
    if weighted:
        weights = torch.tensor([[[token.weight] for token in window] for window in windows]).to(text)
        text = torch.where(weights == 1, text, torch.lerp(text[-1:], text, weights))[:-1]
    if not (penultimate and hasattr(model, "text_projection")):
        return text, None
    ends = [[token.what if isinstance(token.what, int) else None for token in window].index(end) for window in windows]
    at_ends = output.last_hidden_state[range(len(text)), ends[: len(text)]]
    return text, model.text_projection(at_ends)


@contextmanager
def trainable(pipe: Any, embeddings: Sequence[Embedding] = ()) -> Iterator[DiffusersModel]:
    """Make the weights of `pipe` ones that gradients pass through, for the length of the block; no weight is copied.

    embeddings: those that prompts may name besides the one in training. Everything is as it was afterwards, whatever
    ends the block. Raises ValueError as `check_fits`, and for models that predict something else than eps or v.
    """
    roots = [pipe.unet, *(encoder.model for encoder in encoders(pipe).values())]
    with ExitStack() as stack:
        for module in (m for root in roots for m in root.modules()):
            stack.callback(setattr, module, "training", module.training)
            module.training = False
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(ordinary_weights(*roots))
        for module in pipe.unet.modules():
            if isinstance(module, torch.nn.Conv2d):
                stack.enter_context(lean(module, lambda conv, like: conv.get_parameter("weight").to(like)))
        yield DiffusersModel(pipe, embeddings, stack)
