"""What there is in the MODEL, CLIP and VAE of a ComfyUI graph that decides what is trained on them.

Nodes patch models in many ways: weights, objects, options of the network, wrappers, injections, hooks. All of it is
told from another by `marks.mark`, and is the same whether the host has it loaded now, in part, or not at all.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import comfy.hooks
import comfy.patcher_extension
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SDTokenizer
from comfy.weight_adapter.bypass import BypassForwardHook, BypassInjectionManager
from torch import Tensor, nn

from ..embedding import Embedding
from .marks import PLAIN, mark, sample

WRAPPERS = comfy.patcher_extension.WrappersMP
# Wrappers that only sampling calls.
OF_SAMPLING = {
    WRAPPERS.OUTER_SAMPLE,
    WRAPPERS.PREPARE_SAMPLING,
    WRAPPERS.SAMPLER_SAMPLE,
    WRAPPERS.PREDICT_NOISE,
    WRAPPERS.CALC_COND_BATCH,
}
# SD1.x's checkpoints do not have it and nothing there uses it: it is whatever was in memory.
UNSET = ".transformer.text_projection.weight"
# Values of each tensor that patches hold: unlike weights, masks of theirs may differ in a few places alone.
IN_PATCHES = 4096
# What bypassed LoRAs are cast to when they are injected, where the module's weight has it.
CAST_TO = torch.float32, torch.float16, torch.bfloat16


def transformer_options(model: ModelPatcher) -> dict[str, Any]:
    """What the network is told in training besides its inputs, by what is patched on a model."""
    options = dict(model.model_options.get("transformer_options", {}))
    # As the host merges them: those that hang on the model, and those that came with the options.
    wrappers = comfy.patcher_extension.merge_nested_dicts(options.get("wrappers", {}), model.wrappers)
    # EasyCache skips steps of the sampler, of which there are none here.
    options.pop("easycache", None)
    wrappers.get(WRAPPERS.DIFFUSION_MODEL, {}).pop("easycache", None)
    return options | {"wrappers": wrappers}


def identities(
    clip: comfy.sd.CLIP,
    model: ModelPatcher | None,
    vae: comfy.sd.VAE | None,
    dtype: torch.dtype | None,
    guidance: float,
) -> dict[str, str]:
    """See `Host.identities`; dtype: what the model is to compute in, None as in sampling. guidance: what it is told, 0
    for the host's own default."""
    parts: dict[str, Any] = {} if model is None else {"model": _model(model, dtype)}
    if model is not None and guidance:
        parts["model"]["guidance"] = guidance
    parts |= {"clip": clip} if vae is None else {"clip": clip, "vae": vae}
    patchers = [each for each in (model, clip.patcher, getattr(vae, "patcher", None)) if each is not None]
    instead = _Instead(patchers, None if model is None else model.model_dtype())
    return {name: mark(part, instead) for name, part in parts.items()}


def _model(model: ModelPatcher, dtype: torch.dtype | None) -> dict[str, Any]:
    options = transformer_options(model)
    wrappers = options.pop("wrappers").items()
    options["wrappers"] = {kind: by_key for kind, by_key in wrappers if by_key and kind not in OF_SAMPLING}
    return {
        **_patched(model),
        "computes in": dtype or model.get_model_object("manual_cast_dtype") or model.model_dtype(),
        "sampling": model.get_model_object("model_sampling"),
        "latents": model.get_model_object("latent_format"),
        "options": options,
        "wrapper": model.model_options.get("model_function_wrapper"),
    }


def _patched(patcher: ModelPatcher) -> dict[str, Any]:
    """A model, and what changes it."""
    return {
        "model": type(patcher.model),
        "weights": dict(_unpatched(patcher)),
        "patches": patcher.patches,
        "weight wrappers": patcher.weight_wrapper_patches,
        "object patches": patcher.object_patches,
        "injections": patcher.injections,
        "callbacks": patcher.callbacks,
    }


def _modules(patcher: ModelPatcher) -> list[tuple[str, nn.Module]]:
    """A model's modules by name, without those that patches, of this model or a clone, have put in the place of others
    for now."""
    originals = {name: each for name, each in patcher.object_patches_backup.items() if isinstance(each, nn.Module)}
    replaced = tuple(f"{name}." for name in originals)
    there = [each for each in patcher.model.named_modules() if not f"{each[0]}.".startswith(replaced)]
    return there + [each for name, original in originals.items() for each in original.named_modules(prefix=name)]


def _unpatched(patcher: ModelPatcher) -> Iterator[tuple[str, Any]]:
    """Samples of a model's weights and buffers, by name, as they are without the patches that may be on them now."""
    backups = {name: backup.weight for name, backup in patcher.backup.items()}
    backups |= {name: weight for name, (weight, _) in patcher.hook_backup.items()} | patcher.backup_buffers
    for path, module in _modules(patcher):
        for name, weight in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
            full_name = f"{path}.{name}".removeprefix(".")
            # The host may cast some in place when it loads them.
            dtype = getattr(module, f"{name}_comfy_model_dtype", None)
            if not full_name.endswith(UNSET):
                yield full_name, sample(backups.get(full_name, weight), dtype)


class _Instead:
    """What counts of what is met, for `mark`: the host changes its own objects as it uses them.

    patchers: of the models that are trained on. Their modules, which patches hold on to, are called by their names.
    dtype: what floating point numbers in patches are cast to, which the host does when it loads a model.
    """

    def __init__(self, patchers: Sequence[ModelPatcher], dtype: torch.dtype | None):
        self._dtype = dtype
        self._names: dict[int, str] = {}
        for patcher in patchers:
            for path, module in _modules(patcher):
                own = module.named_parameters(path, recurse=False)
                self._names |= {id(weight): name for name, weight in own}
                if next(module.parameters(), None) is not None:  # else it is told by what is in it
                    self._names[id(module)] = f"{type(patcher.model).__name__} {path}"

    def __call__(self, value: Any) -> Any:
        match value:
            case _ if id(value) in self._names:
                return self._names[id(value)]
            case Tensor():
                return sample(value, self._dtype, IN_PATCHES)
            case ModelPatcher():
                return self._names.get(id(value.model)) or _patched(value)
            case comfy.sd.CLIP():
                return _patched(value.patcher), *_words(value)
            case comfy.sd.VAE():
                return _patched(value.patcher), value.vae_dtype
            case SDTokenizer():
                own = {name: each for name, each in vars(value).items() if isinstance(each, PLAIN)}
                own.pop("embedding_directory", None)
                return type(value), own, vars(value).get("_try_get_embedding")
            case Embedding():
                return value.name, value.vectors
            case BypassForwardHook():
                return _bypass(value)
            case BypassInjectionManager():
                return value.hooks
            case comfy.hooks.HookKeyframeGroup():
                return value.keyframes
            case comfy.hooks.HookKeyframe():
                return value.strength, value.start_percent, value.guarantee_steps
            case _:
                return value


def _words(clip: comfy.sd.CLIP) -> Sequence[Any]:
    """How a CLIP is told to read and to encode."""
    tokenizers = {name: each for name, each in vars(clip.tokenizer).items() if isinstance(each, SDTokenizer)}
    hooks = clip.patcher.forced_hooks, clip.use_clip_schedule, clip.apply_hooks_to_conds
    return type(clip.tokenizer), tokenizers, clip.tokenizer_options, clip.layer_idx, hooks


def _bypass(hook: BypassForwardHook) -> Any:
    """Where an adapter is and what it does, whether it is injected now or was before."""
    dtype: Any = hook.module.weight.dtype
    dtype = dtype if dtype in CAST_TO else None
    weights = getattr(hook.adapter, "weights", hook.adapter)
    if isinstance(weights, tuple | list):
        weights = [sample(each, dtype) if isinstance(each, Tensor) else each for each in weights]
    return hook.module, hook.multiplier, type(hook.adapter), weights
