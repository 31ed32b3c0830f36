"""Training and generating with a diffusers pipeline of SD1.x, SD2.x or SDXL: the host where there is no ComfyUI.

Prompts mean what they mean in ComfyUI: `embedding:<name>`, `(weights:1.2)`, windows of 75 tokens. Other than there, an
embedding is only known if it was handed over. `pipelines.load` reads models from disk; this module and that one are
the only ones that import `diffusers`.
"""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Generator, Tensor, nn

from ..devices import upload
from ..embedding import Embedding
from ..errors import UserError
from ..files import readable_stem
from ..formats import load_embedding
from ..noise import NoiseSchedule
from . import pipelines
from .autograd import replaced_method
from .base import Encoder, Find, Host, Known, Lookup, Occurrences, Sampling, TrainableModel
from .marks import mark
from .samplers import SAMPLERS, SCHEDULERS
from .tokens import Token, tokens, windows

log = logging.getLogger("textinv")

CLIP_H_WIDTH = 1024
OWN_TOKEN = "<textinv>"  # for diffusers' loader, which takes no word of the vocabulary, and no capitals of several
MOST_REPEATS = 4  # of a text, for a batch to be one; as ComfyUI
PIXELS_A_CELL = 8  # what SDXL takes a side of a latent's cell for, in pixels, when told of sizes


def load(
    path: Path, config: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> "PipelineHost":
    """The model in a file or folder, as a host; see `pipelines.load`."""
    return PipelineHost(pipelines.load(path, config, device, dtype), readable_stem(path))


# Text encoders and their embeddings


@dataclass(frozen=True)
class PipelineEncoder(Encoder):
    """One text encoder of a pipeline: its tokenizer and its model. unknown: told of each name that is not loaded."""

    tokenizer: Any
    model: Any
    unknown: Callable[[str], None]

    @property
    def table(self) -> Any:  # type: ignore[override]
        return self.model.get_input_embeddings()

    @property
    def window(self) -> int:
        """Tokens a window, start and end included."""
        return self.model.config.max_position_embeddings

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def tokens(self, text: str) -> list[Token]:
        return [token for group in tokens(text, self.ids, self.unknown) for token in group]

    def vectors(self, tokens: Sequence[int]) -> Tensor:
        return self.table.weight.detach()[list(tokens)].to("cpu", torch.float32)

    def apart(self) -> "PipelineEncoder":
        """A copy over the same weights: what is added to its tokens is not added to the pipeline's."""
        # Parameters of their own, because transformers puts a longer table into the one that is there.
        weights = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self.model.parameters()}
        model = copy.deepcopy(self.model, {**weights, **{id(buffer): buffer for buffer in self.model.buffers()}})
        # Else new rows are drawn at random first, by the vocabulary's covariance, which takes seconds.
        model.resize_token_embeddings = partial(model.resize_token_embeddings, mean_resizing=False)
        return replace(self, tokenizer=copy.deepcopy(self.tokenizer), model=model)

    def windows(self, groups: list[list[Token]]) -> list[list[Token]]:
        tokenizer = self.tokenizer
        return windows(groups, self.window, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def _unknown(name: str) -> None:
    log.warning(f"textinv: the prompt names the embedding {name!r}, which is not loaded; it is left out.")


def _word(tokenizer: Any, token: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(token) or f"token {token}"
    text = tokenizer.decode([token]).strip()
    return text if piece.endswith("</w>") else f"{text}-"


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
    raise UserError(f"This model predicts {kind!r}; embeddings are trained here on eps and v prediction.")


class PipelineModel(TrainableModel):
    """On a pipeline; for gradients valid inside `trainable`, `sample` needs none.

    known: finds embeddings that prompts may name besides those in training.
    """

    def __init__(self, host: "PipelineHost", known: Known, stack: ExitStack):
        super().__init__(stack)
        unet = host.pipe.unet
        self.device, self.dtype = unet.device, unet.dtype
        self.modules = unet, *(encoder.model for encoder in host.encoders.values())
        self.blocks = *unet.down_blocks, unet.mid_block, *unet.up_blocks
        self.noise_schedule = _noise_schedule(host.pipe.scheduler)
        self._unet, self._encoders, self._is_sdxl, self._known = unet, host.encoders, host.is_sdxl, known

    def conditions(
        self, prompts: Sequence[str], lookups: Sequence[Mapping[str, Lookup]], latents: Sequence[Tensor]
    ) -> list[Condition]:
        cells = [tuple(latent.shape[-2:]) for latent in latents]
        return self.encode(prompts, [*map(Occurrences, lookups)], cells)

    def encode(
        self, prompts: Sequence[str], finds: Sequence[Find], cells: Sequence[tuple[int, ...]]
    ) -> list[Condition]:
        """Encode prompts, each for a latent of so many cells (height, width), with one run of each text encoder.

        finds: for each prompt, what knows embeddings before those this model knows.
        """

        def find(own: Find, key: str, name: str) -> Tensor | None:
            vectors = own(key, name)
            vectors = self._known(key, name) if vectors is None else vectors
            return self._encoders[key].unknown(name) if vectors is None else upload(vectors, self.device)

        texts, pooled = [[] for _ in prompts], None
        for key, encoder in self._encoders.items():
            filled = [
                encoder.windows(tokens(prompt, encoder.ids, partial(find, own, key)))
                for prompt, own in zip(prompts, finds, strict=True)
            ]
            counts = [len(windows) for windows in filled]
            encoded, at_ends = _run(encoder, [window for windows in filled for window in windows], self._is_sdxl)
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

    def _fit_together(self, conditions: Sequence[Condition]) -> bool:
        lengths = [condition.text.shape[1] for condition in conditions]
        return math.lcm(*lengths) <= MOST_REPEATS * max(lengths)

    def _predict(self, noisy: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        # Attention to a text that comes several times over is attention to that text: so lengths become equal.
        length = math.lcm(*(condition.text.shape[1] for condition in conditions))
        text = torch.cat([c.text.repeat(1, length // c.text.shape[1], 1) for c in conditions]).to(self.dtype)
        more = {}
        pooled = [c.pooled for c in conditions if c.pooled is not None]
        if pooled:
            sizes = upload(torch.cat([c.sizes for c in conditions]), self.device)
            more = {"added_cond_kwargs": {"text_embeds": torch.cat(pooled).to(self.dtype), "time_ids": sizes}}
        noisy, t = noisy.to(self.dtype), t.to(self.device)
        return self._unet(noisy, t, encoder_hidden_states=text, return_dict=False, **more)[0]

    def lean_modules(self) -> Iterator[nn.Module]:
        return (module for module in self._unet.modules() if isinstance(module, nn.Conv2d))

    def recast(self, module: nn.Module, like: Tensor) -> Tensor:
        return module.get_parameter("weight").to(like)


def _run(encoder: PipelineEncoder, windows: list[list[Token]], penultimate: bool) -> tuple[Tensor, Tensor | None]:
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
    ids = upload(ids, table.weight.device)
    rows = table(ids)
    if vectors:
        places = [upload(torch.tensor(index), rows.device) for index in zip(*vectors, strict=True)]
        rows = rows.index_put(tuple(places), torch.stack([*vectors.values()]).to(rows))
    # Not all versions of transformers take vectors in place of ids; all look ids up here.
    with replaced_method(table, "forward", lambda _: lambda _: rows):
        output = model(ids, output_hidden_states=penultimate)
    text = output.hidden_states[-2] if penultimate else output.last_hidden_state
    if weighted:
        weights = torch.tensor([[[token.weight] for token in window] for window in windows])
        weights = upload(weights, text.device).to(text)
        text = torch.where(weights == 1, text, torch.lerp(text[-1:], text, weights))[:-1]
    if not (penultimate and hasattr(model, "text_projection")):
        return text, None
    ends = [[token.what if isinstance(token.what, int) else None for token in window].index(end) for window in windows]
    ends = upload(torch.tensor(ends[: len(text)]), text.device)
    at_ends = output.last_hidden_state[torch.arange(len(text), device=text.device), ends]
    return text, model.text_projection(at_ends)


def _windows(encoder: PipelineEncoder, group: list[Token], is_sdxl: bool) -> Tensor:
    """What an encoder makes of a prompt with nothing but these tokens: float32 [N, window, dim]."""
    return _run(encoder, encoder.windows([group]), is_sdxl)[0].float()


def _told(module: Any) -> dict[str, Any]:
    """The configuration of a part of a pipeline, without what diffusers notes there for itself."""
    return {name: value for name, value in module.config.items() if not name.startswith("_")}


class PipelineHost(Host):
    """A pipeline as `pipelines.load` reads it.

    name: of its file, for metadata. embeddings: those that training prompts may name besides the one in training.
    Raises UserError where these do not fit.
    """

    called = "model"

    def __init__(self, pipe: Any, name: str = "", embeddings: Sequence[Embedding] = ()):
        self.pipe, self._name = pipe, name
        self._unknown = cache(_unknown)  # which says each name once, however many prompts have it
        self._known = self._checked(embeddings)

    def knowing(self, embeddings: Sequence[Embedding]) -> "PipelineHost":
        """The same host, whose training prompts may name these embeddings too."""
        return PipelineHost(self.pipe, self._name, embeddings)

    def _checked(self, embeddings: Sequence[Embedding]) -> Known:
        for embedding in embeddings:
            self.check_fits(embedding)
        return Known({embedding.name: embedding for embedding in embeddings})

    @property
    def encoders(self) -> dict[str, PipelineEncoder]:  # type: ignore[override]
        """By ComfyUI's keys: clip_l; clip_h (SD2); clip_l, clip_g (SDXL)."""
        first = PipelineEncoder(self.pipe.tokenizer, self.pipe.text_encoder, self._unknown)
        if self.is_sdxl:
            second = PipelineEncoder(self.pipe.tokenizer_2, self.pipe.text_encoder_2, self._unknown)
            return {"clip_l": first, "clip_g": second}
        return {"clip_h" if first.width == CLIP_H_WIDTH else "clip_l": first}

    @property
    def is_sdxl(self) -> bool:
        return getattr(self.pipe, "text_encoder_2", None) is not None

    @property
    def encoder_name(self) -> str:
        return "SDXL's" if self.is_sdxl else "SD2.x's" if "clip_h" in self.encoders else "SD1.x's"

    def nearest_words(self, embedding: Embedding, count: int = 5) -> dict[str, list[list[tuple[str, float]]]]:
        """Encoder key -> for each vector, the `count` tokens nearest to it: word and cosine similarity, -1 to 1.

        Tokens that a word goes on after have a hyphen behind them, as in `photo-`. Start and end tokens do not count.
        Raises UserError as `check_fits`.
        """
        self.check_fits(embedding)
        nearest = {}
        for key, encoder in self.encoders.items():
            table = nn.functional.normalize(encoder.table.weight.detach().float(), dim=1)
            # In double precision: the squares of what is finite are finite there.
            vectors = nn.functional.normalize(embedding.vectors[key].double(), dim=1)
            similarity = vectors.to(table) @ table.T
            similarity[:, [encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id]] = -math.inf
            best = similarity.topk(min(count, len(table)))
            nearest[key] = [
                [(_word(encoder.tokenizer, token), value) for token, value in zip(ids, values, strict=True)]
                for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        return nearest

    def _encoded(self, embedding: Embedding) -> list[Tensor]:
        tokens = {key: [*map(Token, rows)] for key, rows in embedding.vectors.items()}
        return [_windows(encoder, tokens[key], self.is_sdxl) for key, encoder in self.encoders.items()]

    def _encoded_from(self, file: Path, embedding: Embedding) -> list[Tensor]:
        """By diffusers' loader, into copies of tokenizers and text encoders."""
        vectors, encoded = load_embedding(file).vectors, []
        for key, encoder in self.encoders.items():
            own = encoder.apart()
            with pipelines.quiet():
                self.pipe.load_textual_inversion(
                    vectors[key], OWN_TOKEN, tokenizer=own.tokenizer, text_encoder=own.model
                )
            ids = own.ids(self.pipe.maybe_convert_prompt(OWN_TOKEN, own.tokenizer))
            encoded.append(_windows(own, [*map(Token, ids)], self.is_sdxl))
        return encoded

    @property
    def latent_multiple(self) -> int:
        return 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)

    def latent_shape(self, width: int = 0, height: int = 0) -> tuple[int, int, int]:
        """Of a picture of so many pixels, 0 for what the model was made for: [C, h, w].

        Raises UserError where they are no multiples of `latent_multiple`.
        """
        multiple, config = self.latent_multiple, self.pipe.unet.config
        width, height = (side or config.sample_size * multiple for side in (width, height))
        if width <= 0 or height <= 0 or width % multiple or height % multiple:
            raise UserError(
                f"A picture of {width}x{height} pixels cannot be generated: width and height must be multiples of "
                f"{multiple}."
            )
        return config.in_channels, height // multiple, width // multiple

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        vae = self.pipe.vae
        latents = []
        for image in images:
            pixels = (image[None, ..., :3].movedim(-1, 1) * 2 - 1).to(vae.device, vae.dtype)
            # The middle of what the VAE holds possible, as in ComfyUI.
            latents.append((vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor)[0].float().cpu())
        return latents

    def encoding(self) -> str:
        return f"{super().encoding()} {self.pipe.vae.device}"

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        vae = self.pipe.vae
        pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        shape: Sequence[int],
        sampling: Sampling,
        embeddings: Sequence[Embedding] = (),
        on_step: Callable[[int], None] = lambda _: None,
    ) -> Tensor:
        """All in one batch. No sampler adds noise on the way: a picture depends on its own seed and prompt alone, up to
        rounding.

        on_step: is told of every step of the sampler that is done, counted from 1."""
        model = PipelineModel(self, self._checked(embeddings), ExitStack())
        encoded = dict.fromkeys([*prompts, sampling.negative])  # each text once
        own = [Occurrences({})] * len(encoded)
        encoded = dict(zip(encoded, model.encode([*encoded], own, [tuple(shape[-2:])] * len(encoded)), strict=True))
        conditions = [encoded[prompt] for prompt in prompts] + [encoded[sampling.negative]] * len(prompts)
        sampler: Any = self._sampler(sampling)
        sampler.set_timesteps(sampling.steps)
        noise = [torch.randn(tuple(shape), generator=Generator().manual_seed(seed)) for seed in seeds]
        noisy = torch.stack(noise).to(model.device) * sampler.init_noise_sigma
        for step, t in enumerate(sampler.timesteps, 1):
            scaled = sampler.scale_model_input(noisy, t)
            predicted = model.predict(torch.cat([scaled, scaled]), t.repeat(2 * len(seeds)), conditions)
            wanted, unwanted = predicted.float().split(len(seeds))
            noisy = sampler.step(unwanted + sampling.guidance * (wanted - unwanted), t, noisy, return_dict=False)[0]
            on_step(step)
        return self.decode(noisy)

    @property
    def samplers(self) -> tuple[str, ...]:
        return SAMPLERS

    @property
    def schedulers(self) -> tuple[str, ...]:
        return SCHEDULERS

    def _sampler(self, sampling: Sampling) -> Any:
        name = sampling.sampler or SAMPLERS[0]
        kind = {"dpmpp_2m": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}[name]
        levels = {"": {}, "normal": {"use_karras_sigmas": False}, "karras": {"use_karras_sigmas": True}}
        return kind.from_config(self.pipe.scheduler.config, **levels[sampling.scheduler])

    def _load(self, latent: Tensor, batch_size: int, stack: ExitStack) -> PipelineModel:
        model = PipelineModel(self, self._known, stack)
        vae = self.pipe.vae
        stack.callback(vae.to, vae.device)
        vae.to("cpu")  # its room is for the training
        for module in (m for root in model.modules for m in root.modules()):
            stack.callback(setattr, module, "training", module.training)
            module.training = False
        return model

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return self.pipe.unet.named_parameters(prefix="unet")

    def identities(self) -> dict[str, str]:
        pipe = self.pipe
        scheduler = pipe.scheduler.alphas_cumprod, pipe.scheduler.config.prediction_type
        models = {key: encoder.model for key, encoder in self.encoders.items()}
        texts = {key: [each, each.config.hidden_act, each.config.num_attention_heads] for key, each in models.items()}
        known = {name: embedding.vectors for name, embedding in self._known.embeddings.items()}
        return {
            "model": mark([pipe.unet, _told(pipe.unet), scheduler]),
            "clip": mark([texts, known]),
            "vae": mark([pipe.vae, _told(pipe.vae)]),
        }

    def facts(self) -> dict[str, str]:
        return super().facts() | ({"textinv.sd_checkpoint_name": self._name} if self._name else {})
