"""Model files and folders on disk -> diffusers pipelines. Nothing is ever asked of a hub.

What a single file does not say (see `configs/README.md`) comes with this package.
"""

import gzip
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from ..devices import is_out_of_memory
from ..errors import Naming, SettingError, UserError
from ..formats import pickles

CONFIGS = Path(__file__).parent / "configs"
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")

UNET = "model.diffusion_model."
VAE = "first_stage_model."
# Family -> where its checkpoints keep the text encoders that it alone has.
FAMILIES = {
    "sdxl": "conditioner.embedders.1.model.",
    "sd2": "cond_stage_model.model.",
    "sd1": "cond_stage_model.transformer.",
}
# Component -> its class, in a family with two text encoders. CLIP-L of SDXL has no use for a projection.
TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}

# What ComfyUI tells v from eps by in SD2 (SD20.model_type in its supported_models.py): this weight's spread.
SD2_V_WEIGHT = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD2_V_SPREAD = 0.09


def load(
    path: Path, config: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """Read an SD1.x, SD2.x or SDXL model, ready to be trained on.

    path: a folder in diffusers' layout, or a single file as the families were published in (`.safetensors`, or a
    `.ckpt` that holds nothing but weights). config: for a single file whose shapes are not its family's, a folder in
    diffusers' layout without weights: configurations, scheduler, tokenizer (CLIP's without one).
    dtype: of the weights, but the VAE is float32: it runs once a picture, and SDXL's overflows in half precision.

    Whether a single file predicts eps or v is `config`'s to say; without one it is found as in ComfyUI: an SD2 by the
    spread of one weight, an SDXL by the key `v_pred`, and `ztsnr` for a schedule that ends in pure noise.

    Raises FileNotFoundError where there is nothing, and UserError for what is no such model, or damaged.
    """
    path = Path(path)
    if path.is_dir():
        if config is not None:
            raise SettingError(
                lambda name: f"{path} is a folder and has configurations of its own: leave out {name('model_config')}."
            )
        with quiet():
            parts = _folder(path, dtype)
    elif path.is_file():
        parts = _single_file(path, config, dtype)
    else:
        raise FileNotFoundError(f"There is no model {path}: neither a file nor a folder.")
    _check_channels(parts["unet"].config["in_channels"], parts["vae"].config["latent_channels"], path.name)
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False).to(device)
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts).to(device)


def own_size(path: Path, config: Path | None = None) -> int:
    """Pixels a side of the pictures that a model was made for, without loading it; `path` and `config` as for `load`.

    Raises as `load` does, and UserError where the configuration does not say.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no model {path}: neither a file nor a folder.")
    folder = path if path.is_dir() else config or CONFIGS / _family(_weights(path), path.name)
    unet, vae = (_json(Path(folder) / part / "config.json") for part in ("unet", "vae"))
    cells, blocks = unet.get("sample_size"), vae.get("block_out_channels")
    if not isinstance(cells, int) or not isinstance(blocks, list) or cells < 1:
        raise SettingError(
            lambda name: (
                f"The configuration of {path.name!r} does not say for what size it was made: set {name('width')} and "
                f"{name('height')}."
            )
        )
    return cells * 2 ** (len(blocks) - 1)


def _check_channels(taken: int, given: int, name: str) -> None:
    if taken != given:
        raise UserError(
            f"{name!r} cannot be trained on here: its UNet takes {taken} channels and its VAE gives {given}, as in "
            "inpainting models. Use the model it was made from."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries from advertising others, giving advice that is not ours, and drawing bars of their own."""
    with ExitStack() as stack:
        for library in (diffusers_logging, transformers_logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                stack.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield


@contextmanager
def _reading(what: str, advice: Callable[[Naming], str] = lambda _: "Is it whole?") -> Iterator[None]:
    """Turn what readers of files raise, which is anything where those are damaged or odd, into a sentence."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):  # which is not the file's fault
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        if isinstance(error, KeyError):
            reason = f"there is no {error}"
        raise _misfit(f"{what} cannot be read: {reason}.", advice) from error


def _misfit(what_is_wrong: str, advice: Callable[[Naming], str]) -> SettingError:
    return SettingError(lambda name: f"{what_is_wrong} {advice(name)}")


# Folders


def _folder(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The components in `folder`, each by the class we know, whatever its index asks to be loaded."""
    kind = _json(folder / "model_index.json").get("_class_name")
    if kind not in PIPELINES:
        raise UserError(f"{folder.name!r} holds a {kind}. Embeddings are trained here on {' or '.join(PIPELINES)}.")
    names = list(TEXT_ENCODERS)[: 1 + (kind == "StableDiffusionXLPipeline")]
    # All of these first: the libraries would look for a missing one elsewhere, and tell of connections.
    for name in ("unet", "vae", *names):
        _json(folder / name / "config.json")
    scheduler = _scheduler(folder)
    files = {name: _weight_files(folder / name) for name in ("unet", "vae", *names)}
    parts: dict[str, Any] = {}
    for name, model, options in (
        ("unet", UNet2DConditionModel, {"torch_dtype": dtype}),
        ("vae", AutoencoderKL, {"torch_dtype": torch.float32}),
        # With this, sizes that differ are told of as what is missing is, instead of in a table in the log.
        *((name, TEXT_ENCODERS[name], {"ignore_mismatched_sizes": True}) for name in names),
    ):
        options |= {
            "use_safetensors": any(file.endswith(".safetensors") for file in files[name]),
            "variant": "fp16" if all(".fp16." in file for file in files[name]) else None,
        }
        with _reading(f"The {name} in {folder.name!r}"):
            loaded: Any = model.from_pretrained(
                folder / name, local_files_only=True, output_loading_info=True, **options
            )
        parts[name], loading = loaded
        _check_filled(loading, f"{name} in {folder.name!r}")
        parts[name].requires_grad_(False).eval()
    for name in names:
        parts[name].to(dtype)
    return {**parts, **_tokenizers(folder, names), "scheduler": scheduler}


def _weight_files(folder: Path) -> list[str]:
    """The names of the files with a component's weights, or with their index. Raises UserError where there are none,
    and as `_check_pickles`."""
    if safe := [file.name for file in folder.glob("*.safetensors")]:
        return safe
    files = [file.name for file in folder.glob("*.bin*")]
    if not files:
        raise UserError(
            f"The {folder.name} in {folder.parent.name!r} has no weights, neither a .safetensors nor a .bin: there are "
            f"only {', '.join(sorted(file.name for file in folder.iterdir()))}. Is the folder whole?"
        )
    _check_pickles(folder)
    return files


def _check_pickles(folder: Path) -> None:
    """Raise UserError for `.bin` weights that harm: the libraries have torch open them, which can freeze for ever."""
    maps = [_json(index).get("weight_map") for index in folder.glob("*.bin.index.json")]
    parts = {str(name) for names in maps if isinstance(names, dict) for name in names.values()}
    for file in {*folder.glob("*.bin"), *(folder / name for name in parts)}:
        if file.is_file():
            pickles.load(file)


def _check_filled(loading: Mapping[str, Any], what: str) -> None:
    """Raise UserError where a library had no weights from the file for some of a model: it leaves random ones."""
    missing = sorted(loading["missing_keys"])
    mismatched = sorted(name for name, *_ in loading["mismatched_keys"])
    if missing or mismatched:
        count = len(missing) + len(mismatched)
        is_wrong = f"{missing[0]} is not there" if missing else f"{mismatched[0]} has another shape"
        raise UserError(
            f"The {what} is not what its configuration says: {is_wrong}{f', and {count - 1} more' * (count > 1)}. "
            "Check that the folder is whole, and diffusers and transformers not older than those that saved it."
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{str(file.parent)!r} has no {file.name}. A model folder is laid out as diffusers saves one."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{str(file)!r} cannot be read as JSON: {error}. Is it whole?") from None
    if not isinstance(config, dict):
        raise UserError(f"{str(file)!r} holds a {type(config).__name__}, not a configuration. Is it the right file?")
    return config


def _scheduler(folder: Path, **changed: Any) -> Any:
    """DPM-Solver++ (Lu et al. 2022), order 2, with the noise schedule and prediction type `folder` tells of."""
    config = {**_json(folder / "scheduler" / "scheduler_config.json"), **changed}
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    kept += ("timestep_spacing", "steps_offset", "rescale_betas_zero_snr")
    with _reading(f"The scheduler in {folder.name!r}"):
        return DPMSolverMultistepScheduler.from_config({key: config[key] for key in kept if key in config})


def _tokenizers(folder: Path, text_encoders: list[str]) -> dict[str, Any]:
    """Those in `folder`, else CLIP's own."""
    tokenizers = {}
    for text_encoder in text_encoders:
        name = text_encoder.replace("text_encoder", "tokenizer")
        # CLIP of OpenAI pads with the end token; OpenCLIP with 0, which is "!".
        is_openai = _json(folder / text_encoder / "config.json").get("hidden_act") == "quick_gelu"
        tokenizers[name] = clip_tokenizer("<|endoftext|>" if is_openai else "!")
        if (folder / name).is_dir():
            if not any((folder / name / file).is_file() for file in ("vocab.json", "tokenizer.json")):
                raise UserError(
                    f"The {name} in {folder.name!r} has no words: neither vocab.json nor tokenizer.json. Is it whole?"
                )
            with _reading(f"The {name} in {folder.name!r}"):
                own: Any = CLIPTokenizer.from_pretrained(folder / name, local_files_only=True)
            # Where "!" pads, published folders have the tokenizer treat every "!" in a text as padding. So their own
            # is only taken where it knows other words.
            if own.get_vocab() != tokenizers[name].get_vocab():
                tokenizers[name] = own
    return tokenizers


def byte_letters() -> list[str]:
    """The letters that stand for bytes in CLIP's vocabulary, in its order: printable ones for themselves, first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]


def clip_tokenizer(pad: str) -> Any:
    """The tokenizer of all published SD1.x, SD2.x and SDXL; `pad` is the token that fills windows."""
    merges = gzip.decompress((CONFIGS / "clip_merges.txt.gz").read_bytes()).decode("utf-8")
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [pair.replace(" ", "") for pair in merges.splitlines()[1:]]  # the first line is a version
    words += ["<|startoftext|>", "<|endoftext|>"]
    with TemporaryDirectory() as folder:
        Path(folder, "merges.txt").write_text(merges, encoding="utf-8")
        Path(folder, "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}), encoding="utf-8")
        tokenizer: Any = CLIPTokenizer.from_pretrained(folder, model_max_length=77, local_files_only=True)
    tokenizer.pad_token = pad  # set now, it is not looked for in texts
    return tokenizer


# Single files


def _single_file(path: Path, config: Path | None, dtype: torch.dtype) -> dict[str, Any]:
    weights = _weights(path)
    family = _family(weights, path.name)
    folder = CONFIGS / family if config is None else Path(config)
    names = list(TEXT_ENCODERS)[: 1 + (family == "sdxl")]
    _check_file_channels(weights, path.name)

    def advice(name: Naming) -> str:
        mended = f"Give a folder with its configurations as {name('model_config')}"
        mended = mended if config is None else f"Correct {name('model_config')}"
        return f"{mended}, or check that the file is whole."

    # All of them first: transformers would look for a missing one elsewhere.
    configs = {name: _json(folder / name / "config.json") for name in ("unet", "vae", *names)}
    with _reading(f"The configuration in {folder.name!r}"), torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(configs["unet"])
        vae: Any = AutoencoderKL.from_config(configs["vae"])
        texts: dict[str, Any] = {
            name: TEXT_ENCODERS[name](CLIPTextConfig.from_pretrained(folder / name, local_files_only=True))
            for name in names
        }
    with _reading(f"The unet of {path.name!r}", advice):
        converted = {"unet": convert_ldm_unet_checkpoint(weights, unet.config)}
    with _reading(f"The vae of {path.name!r}", advice):
        converted["vae"] = convert_ldm_vae_checkpoint(weights, vae.config)
    for name, model in texts.items():
        is_open_clip = family == "sd2" or name == "text_encoder_2"
        with _reading(f"The {name} of {path.name!r}", advice):
            converted[name] = (
                convert_open_clip_checkpoint(model, weights, FAMILIES[family])
                if is_open_clip
                else convert_ldm_clip_checkpoint(weights)
            )
        # Counts places up to the window's end; in no file, and on no device yet.
        positions = torch.arange(model.config.max_position_embeddings)[None]
        getattr(model, "text_model", model).embeddings.register_buffer("position_ids", positions, persistent=False)
    parts = {"unet": unet, "vae": vae, **texts}
    for name, model in parts.items():
        _fill(model, converted[name], torch.float32 if name == "vae" else dtype, f"{name} of {path.name!r}", advice)
    changed = _prediction(weights, family) if config is None else {}
    return {**parts, **_tokenizers(folder, names), "scheduler": _scheduler(folder, **changed)}


def _weights(path: Path) -> dict[str, Tensor]:
    if path.suffix.lower() == ".safetensors":
        with _reading(repr(path.name)):
            return load_file(path)
    loaded = pickles.load(path)
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    loaded = loaded if isinstance(loaded, dict) else {}
    return {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _check_file_channels(weights: Mapping[str, Tensor], file: str) -> None:
    """As `_check_channels`, by what a single file holds: one for inpainting needs another model, not another config."""
    convs = weights.get(UNET + "input_blocks.0.0.weight"), weights.get(VAE + "decoder.conv_in.weight")
    taken, given = (conv.shape[1] if conv is not None and conv.ndim == 4 else None for conv in convs)
    if taken and given:
        _check_channels(taken, given, file)


def _family(weights: Collection[str], file: str) -> str:
    has_unet = any(key.startswith(UNET) for key in weights)
    families = [name for name, prefix in FAMILIES.items() if any(key.startswith(prefix) for key in weights)]
    if not (has_unet and families):
        raise UserError(
            f"{file!r} is no checkpoint of SD1.x, SD2.x or SDXL: it lacks the UNet or the text encoders they have. "
            "Give a file with the whole model, or a folder as diffusers saves one."
        )
    if any(key.startswith("edm_") for key in weights):
        raise UserError(f"{file!r} is an EDM model, whose noise diffusers cannot describe. Train on it in ComfyUI.")
    return families[0]


def _prediction(weights: Mapping[str, Tensor], family: str) -> dict[str, Any]:
    """What the weights say about prediction type and noise schedule; see `load`."""
    v = {"prediction_type": "v_prediction"}
    if family == "sd2":
        bias = weights.get(SD2_V_WEIGHT)
        return v if bias is not None and bias.float().std(unbiased=False) > SD2_V_SPREAD else {}
    if family == "sdxl" and "v_pred" in weights:
        return v | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in weights else {})
    return {}


def _fill(
    model: torch.nn.Module,
    converted: Mapping[str, Tensor],
    dtype: torch.dtype,
    what: str,
    advice: Callable[[Naming], str],
) -> None:
    """Put `converted`, named as in diffusers, into the empty `model`. Raises UserError where it does not fit."""
    # Some versions of transformers, and some checkpoints, leave this part of the name out.
    converted = {name.removeprefix("text_model."): weight for name, weight in converted.items()}
    filled = {}
    for name, empty in model.state_dict().items():
        weight = converted.get(name.removeprefix("text_model."))
        if weight is None or weight.shape != empty.shape:
            is_there = "is not there" if weight is None else f"has shape {list(weight.shape)}"
            wrong = f"{name} {is_there}, it should have {list(empty.shape)}"
            raise _misfit(f"The {what} is not what its configuration says: {wrong}.", advice)
        filled[name] = weight.to(dtype).contiguous()
    model.load_state_dict(filled, assign=True)
    model.requires_grad_(False).eval()
