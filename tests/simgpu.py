"""A device in Python, `simgpu`, for what only shows on a GPU: mixed devices, and what makes the program wait.

Importing this makes the device; it has to come before the process's first backward, when autograd starts a thread a
device. From then on `tensor.to("simgpu")` and the like work. Its tensors are plain ones with memory of their own kind,
on which each operation runs on the CPU and then belongs to `simgpu` again: results are those of the CPU.

A program that drives a GPU hands over work and goes on; it waits only where it needs an answer. `counting` notes
where: each wait costs a real GPU the time until it has caught up, and then the time until it has work again.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, library
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten: Any = torch.ops.aten
TORCH = os.path.dirname(torch.__file__)
ROOT = str(Path(__file__).parents[1])
TOLERANT = os.path.join(ROOT, "textinv_core", "hosts", "tolerant.py")
ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
# Indices may come from the CPU: the GPU's own kernels fetch them.
TAKE_CPU_INDICES = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten.index_put.default}
# The host has to know a value, or how large a result is, before it can go on.
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


@dataclass(frozen=True)
class Transfer:
    """One exchange between the program and the device.

    what: the operation and the shape it was about. where: the line that asked for it, innermost first: the one outside
    torch, and the one of this project where that is another; empty for what backward does by itself.
    blocking: whether the program waits until the device has caught up. An upload only does not if `non_blocking`.
    """

    what: str
    where: str
    blocking: bool


@dataclass
class Waits:
    """What was counted. reads: values and tensors the program got back; uploads: tensors it sent."""

    reads: list[Transfer] = field(default_factory=list)
    uploads: list[Transfer] = field(default_factory=list)

    @property
    def blocking_uploads(self) -> list[Transfer]:
        return [upload for upload in self.uploads if upload.blocking]

    def __str__(self) -> str:
        kinds = {"read": self.reads, "upload": self.blocking_uploads}
        kinds["upload, not waited for"] = [upload for upload in self.uploads if not upload.blocking]
        lines = [
            f"{times:4} x {kind}: {transfer.what}  {transfer.where}"
            for kind, transfers in kinds.items()
            for transfer, times in Counter(transfers).most_common()
        ]
        return "\n".join([f"{len(self.reads)} reads, {len(self.uploads)} uploads", *lines])


_counting: list[Waits] = []  # for all threads: backward runs in its own


@contextmanager
def counting() -> Iterator[Waits]:
    """Count what passes between the program and the device during the block."""
    waits = Waits()
    _counting.append(waits)
    try:
        yield waits
    finally:
        _counting.remove(waits)


def _note(kind: str, op: Any, tensor: Tensor, blocking: bool = True) -> None:
    if _counting:
        transfer = Transfer(f"{op} {list(tensor.shape)} {tensor.dtype}", _where(), blocking)
        for waits in _counting:
            getattr(waits, kind).append(transfer)


def _where() -> str:
    lines, frame = [], sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        # Tolerance hands on what others do.
        if path not in (__file__, TOLERANT) and not path.startswith((TORCH, "<")):
            ours = path.startswith(ROOT)
            if ours or not lines:
                lines.append(f"{os.path.relpath(path, ROOT) if ours else path}:{frame.f_lineno}")
            if ours:
                break
        frame = frame.f_back
    return " < ".join(lines)


# Memory

CPU = torch.device("cpu")


def _is_ours(tensor: Tensor) -> bool:
    return tensor.device.type == "simgpu"


def _seen_from(device: torch.device, memory: torch.UntypedStorage) -> torch.UntypedStorage:
    """The same memory, as that of `device`."""
    same: Any = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), device, memory.nbytes())
    same.owner = memory  # lives as long
    return same


def _cpu_alias(tensor: Tensor) -> Tensor:
    """A CPU tensor over the memory of one on the device."""
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    return torch.empty(0, dtype=tensor.dtype).set_(_seen_from(CPU, tensor.untyped_storage()), *place)


def _moved(tensor: Tensor) -> Tensor:
    """A tensor on the device over the memory of one of the CPU."""
    return _over(tensor, torch._C._acc.create_empty_tensor([0], tensor.dtype))


def _over(tensor: Tensor, ours: Tensor) -> Tensor:
    """The device's tensor `ours`, from now on over the memory of `tensor`, one of the CPU."""
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    memory = _seen_from(SIMGPU, tensor.untyped_storage())
    return aten.set_.source_Storage_storage_offset.redispatch(ON_CPU, ours, memory, *place)


_clone = torch.UntypedStorage.clone


def _cloned(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    """For `copy.deepcopy`, which copies memory without asking the device for new."""
    return _seen_from(SIMGPU, _clone(_seen_from(CPU, memory))) if memory.device == SIMGPU else _clone(memory)


# Operations


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation of which a tensor, or the result, is on the device."""
    if op.is_view or op._schema.name == "aten::set_":  # nothing is computed: shapes and strides over the same memory
        return op.redispatch(ON_CPU, *args, **kwargs)
    originals: dict[int, Tensor] = {}

    def on_cpu(tensor: Tensor) -> Tensor:
        if not _is_ours(tensor):
            if op in TAKE_CPU_INDICES and tensor.dtype in (torch.int64, torch.int32, torch.bool, torch.uint8):
                _note("uploads", op, tensor)
            elif tensor.ndim:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, simgpu:0 and "
                    f"{tensor.device}! (tensor {list(tensor.shape)} in {op}, {_where()})"
                )
            return tensor
        alias = _cpu_alias(tensor)
        originals[id(alias)] = tensor
        return alias

    computed_args, computed_kwargs = tree_map_only(Tensor, on_cpu, (args, kwargs))
    if computed_kwargs.get("device") is not None:
        computed_kwargs["device"] = CPU
    if DATA_DEPENDENT & set(op.tags) and _asks(op, args):
        _note("reads", op, next(arg for arg in args if isinstance(arg, Tensor)))
    to_fill = computed_kwargs.get("out")
    if isinstance(to_fill, Tensor) and not to_fill.numel():  # of the right size only once it is filled
        results = op(*computed_args, **computed_kwargs | {"out": torch.empty(0, dtype=to_fill.dtype)})
        return _over(results, kwargs["out"])
    results = op(*computed_args, **computed_kwargs)

    def on_device(tensor: Tensor) -> Tensor:
        return originals[id(tensor)] if id(tensor) in originals else _moved(tensor)

    return tree_map_only(Tensor, on_device, results)


def _asks(op: Any, args: tuple) -> bool:
    """Whether an operation whose result's size may depend on values is one where it does."""
    if op is not aten.index.Tensor:
        return True
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if not _is_ours(target):
        _note("reads", aten._copy_from.default, source)
    elif not _is_ours(source):
        _note("uploads", aten._copy_from.default, source, not non_blocking)
    to, of = (_cpu_alias(each) if _is_ours(each) else each for each in (target, source))
    to.copy_(of)
    return target


def _convolution_backward(gradient: Tensor, input: Tensor, weight: Tensor, *how: Any) -> Any:
    *how, wanted = how
    return _run(aten.convolution_backward.default, gradient, input, weight, None, *how, wanted)


class _Module(_DummyBackendModule):
    """What torch asks of `torch.simgpu`."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()  # random numbers are the CPU's

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def synchronize(self, device: Any = None) -> None:
        pass


def lend_to_comfyui() -> None:
    """Let ComfyUI, started with `--cpu` and imported, take simgpu for its GPU, with as much memory as there is RAM."""
    import comfy.model_management as management  # pyright: ignore[reportMissingImports]
    import psutil

    def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        free = psutil.virtual_memory().available
        return (free, free) if torch_free_too else free

    management.get_torch_device = management.text_encoder_device = lambda: SIMGPU
    management.get_free_memory = get_free_memory
    management.vram_state = management.VRAMState.NORMAL_VRAM


_setup_privateuseone_for_python_backend("simgpu", backend_module=_Module())
SIMGPU = torch.device("simgpu", 0)
torch.UntypedStorage.clone = _cloned  # type: ignore[method-assign]
_everything = library.Library("_", "IMPL")
_everything.fallback(_run, "PrivateUse1")
_some = library.Library("aten", "IMPL")
_some.impl("_copy_from", _copy_from, "PrivateUse1")
# What torch has other ways for on devices it does not know; these are the CPU's.
_some.impl("convolution_overrideable", partial(_run, aten.convolution.default), "PrivateUse1")
_some.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
for _op in (
    aten.native_layer_norm.default,
    aten.native_group_norm.default,
    aten.silu_backward.default,
    aten.index.Tensor,
):
    _some.impl(_op, partial(_run, _op), "PrivateUse1")
