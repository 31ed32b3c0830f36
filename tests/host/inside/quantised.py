"""Training on weights as quantised as the host can load them; prints JSON by kind.

quantised.py [KIND ...]: those named, or all of `KINDS`. Each is a small Flux with T5, both of weights of this kind,
loaded by the host's own classes from what their checkpoints have, beside the same in float32 with the numbers that
these weights stand for.

What is printed of each: `refused`, with nothing else, where it cannot be trained on; `quantised`, how many weights are;
`loss`, how far it is off the loss with those numbers, as a part of it; `gradient`, the cosine of both gradients, by
encoder; `checkpointed`, the largest difference of the gradient with checkpoints, as a part of its largest number;
`unpacked`, the most weights that were unpacked at once while gradients were computed; `copied`, the weights that were
read elsewhere than they lie; `changed`, by how a training ended, which are not as they were; `vectors`, how far an
init text's are off; `norms`, how far those of usual words are.
"""

import functools
import gc
import json
import logging
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy
import pack
import torch

pack.load_pack()

import comfy.model_management as management  # noqa: E402
import comfy.quant_ops as quant_ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models as supported  # noqa: E402
import comfy.supported_models_base as supported_base  # noqa: E402
import comfy.text_encoders.flux as flux  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from losses import NAME, Losses, largest_difference  # noqa: E402
from small.family import CPU, small_clip, small_model  # noqa: E402
from small.of_clip_and_t5 import FLUX, SIZES, t5_sizes, without_biases  # noqa: E402
from textinv.textinv_core.errors import UserError  # noqa: E402
from textinv.textinv_core.hosts.comfy import ComfyHost  # noqa: E402

logging.disable(logging.WARNING)
WIDTH = 256  # some kinds rotate that many numbers
SMALL = FLUX | {"hidden_size": WIDTH, "num_heads": 2, "axes_dim": [16, 56, 56], "context_in_dim": WIDTH}
ENCODERS = SIZES | {"t5xxl_model_config": t5_sizes(WIDTH)}
IN_BLOCKS = "double_blocks", "single_blocks", "encoder.block."
TABLE = "shared.weight"
NATIVE = "supports_fp8_compute", "supports_nvfp4_compute", "supports_mxfp8_compute"


@dataclass(frozen=True)
class Kind:
    """One way to have weights in less than 16 bits.

    algorithm: the host's name for it in checkpoints; "" where weights are plainly cast to `dtype`. options: of its
    quantisation. of_tables: whether the host can look words up in it. native: whether the host takes the machine for
    one that multiplies such numbers. dtype, fast: as UNETLoader's weight_dtype says them.
    """

    algorithm: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    of_tables: bool = False
    native: bool = False
    dtype: torch.dtype | None = None
    fast: bool = False


CONVROT = {"per_channel": True, "convrot": True}
KINDS = {
    "fp8": Kind("float8_e4m3fn", of_tables=True),
    "fp8 native": Kind("float8_e4m3fn", of_tables=True, native=True),
    "fp8 e5m2": Kind("float8_e5m2", of_tables=True),
    "mxfp8": Kind("mxfp8"),
    "mxfp8 native": Kind("mxfp8", native=True),
    "nvfp4": Kind("nvfp4"),
    "nvfp4 native": Kind("nvfp4", native=True),
    "int8": Kind("int8_tensorwise", of_tables=True),
    "int8 by channel": Kind("int8_tensorwise", {"per_channel": True}, of_tables=True),
    "int8 rotated": Kind("int8_tensorwise", CONVROT, of_tables=True),
    "int4 rotated": Kind("convrot_w4a4"),
    "int4 asymmetric": Kind("asym_w4a8_int8"),
    "cast to fp8": Kind(dtype=torch.float8_e4m3fn),
    "cast to fp8 e5m2": Kind(dtype=torch.float8_e5m2),
    "cast to fp8, fast": Kind(dtype=torch.float8_e4m3fn, native=True, fast=True),
}


# Models


def config():
    return supported.Flux({**supported.Flux.unet_config, **SMALL, "txt_ids_dims": []})


@functools.cache
def float_states():
    """Of the diffusion model, CLIP-L and T5, in float32."""
    model, clip = small_model(config()).model, small_clip(flux.FluxTokenizer, flux.flux_clip(), ENCODERS)
    without_biases(model)
    without_biases(clip.cond_stage_model)
    text = clip.cond_stage_model
    return model.diffusion_model.state_dict(), text.clip_l.transformer.state_dict(), text.t5xxl.transformer.state_dict()


def is_quantised(name, weight, kind):
    fits = weight.ndim == 2 and weight.shape[1] % WIDTH == 0
    return fits and (name.startswith(IN_BLOCKS) or (name == TABLE and kind.of_tables))


def quantised(state, kind):
    """What a checkpoint has of these weights, quantised, and the numbers that those stand for."""
    if kind.dtype:
        return state, {name: weight.to(kind.dtype).float() for name, weight in state.items()}
    layout = quant_ops.QUANT_ALGOS[kind.algorithm]["comfy_tensor_layout"]
    options = kind.options | ({"scale": "recalculate"} if kind.algorithm.startswith("float8") else {})
    packed, numbers = dict(state), dict(state)
    for name, weight in state.items():
        if is_quantised(name, weight, kind):
            made = quant_ops.QuantizedTensor.from_float(weight, layout, **options)
            said = json.dumps({"format": kind.algorithm, **kind.options}).encode()
            marked = {f"{name.removesuffix('weight')}comfy_quant": torch.tensor(list(said), dtype=torch.uint8)}
            packed |= made.state_dict(name) | marked
            numbers[name] = made.dequantize()
    return packed, numbers


def model_of(state, kind):
    """MODEL as UNETLoader makes it of a file; kind: None for float32."""
    chosen = config()
    chosen.set_inference_dtype(torch.float32, None)
    if kind:
        chosen.set_inference_dtype(kind.dtype, torch.float32)
        chosen.quant_config = {"mixed_ops": True} if kind.algorithm else None
        chosen.optimizations = {"fp8": kind.fast}
    model = chosen.get_model({}, device=CPU)
    model.load_model_weights(dict(state))
    return ModelPatcher(model, CPU, CPU)


def clip_of(clip_l, t5, kind):
    """CLIP as DualCLIPLoader makes it of two files; kind: None for float32."""
    metadata = {"mixed_ops": True} if kind and kind.algorithm else None
    dtype = torch.float32 if kind is None or kind.dtype is None else kind.dtype
    target = supported_base.ClipTarget(flux.FluxTokenizer, flux.flux_clip(dtype, metadata))
    options = {"dtype": dtype, **ENCODERS}
    return comfy.sd.CLIP(target, embedding_directory=[], model_options=options, state_dict=[dict(clip_l), dict(t5)])


def hosts(kind):
    """With weights of a kind, and with the numbers that these stand for."""
    model, clip_l, t5 = float_states()
    (model, model_numbers), (t5, t5_numbers) = quantised(model, kind), quantised(t5, kind)
    clip_l_numbers = quantised(clip_l, kind)[1] if kind.dtype else clip_l
    return (
        ComfyHost(clip_of(clip_l, t5, kind), model_of(model, kind)),
        ComfyHost(clip_of(clip_l_numbers, t5_numbers, None), model_of(model_numbers, None)),
    )


# What is measured


def modules(host):
    return host._model.model, host._clip.cond_stage_model


def weights(host) -> Iterator[tuple[str, torch.Tensor]]:
    for part in modules(host):
        yield from part.named_parameters()


def parts(weight):
    """The tensors with memory of their own that a weight is made of."""
    if not isinstance(weight, quant_ops.QuantizedTensor):
        return [weight]
    return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]


def bits(host):
    return {
        name: (id(weight), [part.reshape(-1).view(torch.uint8).sum().item() for part in parts(weight)])
        for name, weight in weights(host)
    }


def memory(host):
    return {name: [part.data_ptr() for part in parts(weight)] for name, weight in weights(host)}


@contextmanager
def counting_unpacked():
    """Gives a list whose last number is how many of the weights that were unpacked there are still."""
    alive: weakref.WeakSet[numpy.ndarray] = weakref.WeakSet()
    counts, dequantize = [0], quant_ops.QuantizedTensor.dequantize

    class Memory(numpy.ndarray):
        __hash__ = object.__hash__

    def unpack(tensor):
        numbers = dequantize(tensor)
        own = numpy.empty(numbers.shape, numpy.float32).view(Memory)  # which the tensor holds as long as it lives
        alive.add(own)
        counts.append(len(alive))
        return torch.from_numpy(own).copy_(numbers)

    with mock.patch.object(quant_ops.QuantizedTensor, "dequantize", unpack):
        yield counts


def off(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


def cosines(found, wanted):
    return {key: float(torch.cosine_similarity(found[key].flatten(), wanted[key].flatten(), 0)) for key in wanted}


def changed(host, latent, before, end):
    """The weights that are not as they were, when a training has ended with an error of this type, or none."""
    try:
        with host.trainable(latent, 1) as trainable:
            with torch.no_grad():
                Losses(trainable, latent)(host.create_embedding(NAME, "a dog", 2).vectors)
            if end:
                raise end
    except (ArithmeticError, management.InterruptProcessingException):
        pass
    after = bits(host)
    return [name for name in before if before[name] != after[name]]


def look_at(kind):
    with ExitStack() as stack, torch.inference_mode():
        for name in NATIVE if kind.native else ():
            stack.enter_context(mock.patch.object(management, name, lambda *_: True))
        host, wanted = hosts(kind)
        latent = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(1))
        start = wanted.create_embedding(NAME, "a dog", 2)
        try:
            own = host.create_embedding(NAME, "a dog", 2)
        except UserError as error:
            return {"refused": str(error)}
        norms, norms_wanted = host.word_norms(), wanted.word_norms()
        with wanted.trainable(latent, 1) as trainable:
            loss_wanted, gradient_wanted = Losses(trainable, latent).gradient(start.vectors)
        management.load_models_gpu([host._model, host._clip.patcher])  # which makes parameters anew
        where, before = memory(host), bits(host)
        with host.trainable(latent, 1) as trainable:
            copied = [name for name, there in memory(host).items() if there != where[name]]
            losses = Losses(trainable, latent)
            losses.gradient(start.vectors)  # finds out what autograd refuses
            with counting_unpacked() as counts:
                loss, gradient = losses.gradient(start.vectors)
            trainable.checkpoint_activations()
            _, again = losses.gradient(start.vectors)
        ends = {"end": None, "error": ArithmeticError, "interrupt": management.InterruptProcessingException}
        return {
            "quantised": sum(isinstance(weight, quant_ops.QuantizedTensor) for _, weight in weights(host)),
            "loss": abs(loss / loss_wanted - 1),
            "gradient": cosines(gradient, gradient_wanted),
            "checkpointed": largest_difference(again, gradient),
            "unpacked": max(counts),
            "copied": copied,
            "changed": {name: changed(host, latent, before, end) for name, end in ends.items()},
            "vectors": max(off(own.vectors[key], rows) for key, rows in start.vectors.items()),
            "norms": max(abs(norms[key] / norm - 1) for key, norm in norms_wanted.items()),
        }


result = {}
for name in pack.ARGS or KINDS:
    began = time.perf_counter()
    try:
        result[name] = look_at(KINDS[name])
    except Exception as error:
        logging.disable(logging.NOTSET)
        logging.exception(name)
        logging.disable(logging.WARNING)
        result[name] = {"error": f"{type(error).__name__}: {error}"}
    print(name, round(time.perf_counter() - began, 1), result[name], file=sys.stderr)
    gc.collect()
print(json.dumps(result))
