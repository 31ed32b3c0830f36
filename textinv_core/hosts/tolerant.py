"""Gradients through code that was written for inference alone: it changes tensors in place, writes into given memory,
calls operations that have no backward, and takes tensors that autograd refuses."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from .autograd import is_plain, ordinary, pointer

# Those that host code calls with `out=` on what needs gradients. Not all there are: the host's fp8_linear finds out by
# the error of `torch.clamp(..., out=)` that it has to take the path that can be trained through.
INTO_GIVEN = {torch.add, torch.mul, torch.exp}
IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__iand__", "__ior__"}


class Kept:
    """A tensor as it was when it was kept for the backward pass."""

    __slots__ = ("__weakref__", "_tensor", "_version")

    def __init__(self, tensor: Tensor):
        self._tensor, self._version = tensor.detach(), tensor._version

    def copy(self) -> None:
        """Keep a copy of it, before it is changed."""
        self._tensor = self._tensor.clone()
        self._version = 0

    def get(self) -> Tensor:
        """The tensor; RuntimeError where it has been changed nevertheless."""
        if self._tensor._version != self._version:
            raise RuntimeError("A tensor that is needed for gradients has been changed in place.")
        return self._tensor


def unkept(value: Any) -> Any:
    """What was given to be kept, where it has been, and anything else as it is."""
    return value.get() if isinstance(value, Kept) else value


def _is_in_place(name: str) -> bool:
    return name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _needs_gradient(args: Sequence[Any]) -> bool:
    return any(isinstance(value, Tensor) and value.requires_grad for value in args)


class Tolerant(TorchFunctionMode):
    """Inside it and its `keeping()`, what autograd would refuse is done so that gradients come out right.

    - What is saved for backward is copied just before something changes it in place, and nothing else is.
    - Of `INTO_GIVEN`, where gradients are needed, `out=` becomes the operation and a copy of its result.
    - Inference tensors are taken as ordinary ones over the same memory.
    - Operations that have no backward are replaced by what `instead` gives for them.

    (`torch.autograd.graph.allow_mutation_on_saved_tensors` does the first, but not within a checkpoint.) It costs a few
    microseconds an operation. May be entered again, on any thread, as backward does.

    constant: memory that nobody changes, see `storages`. instead: an operation -> one that does the same and has a
    backward, or None.
    """

    def __init__(self, constant: set[int], instead: Callable[[Any], Any | None] = lambda function: None):
        super().__init__()
        self._constant, self._instead = constant, instead
        # By memory, what is kept of it.
        self._kept: dict[int, list[weakref.ref[Kept]]] = {}
        self._changing: set[int] = set()

    def keeping(self) -> saved_tensors_hooks:
        """Inside, what autograd saves is kept; see `keep`."""
        return saved_tensors_hooks(self.keep, unkept)

    def forget(self) -> None:
        """Before another forward pass: what was kept for the last is no more looked after."""
        self._kept.clear()

    def keep(self, tensor: Tensor) -> Any:
        """`tensor` as it is now, for `unkept`."""
        if not is_plain(tensor) or pointer(tensor) in self._constant:
            return tensor
        kept, memory = Kept(tensor), pointer(tensor)
        if memory in self._changing:  # by the very operation that saves it
            kept.copy()
        else:
            self._kept.setdefault(memory, []).append(weakref.ref(kept))
        return kept

    @contextmanager
    def _change(self, tensors: Sequence[Any]) -> Iterator[None]:
        changing = {pointer(tensor) for tensor in tensors if is_plain(tensor)} - self._changing
        for memory in changing:
            for reference in self._kept.pop(memory, ()):
                if kept := reference():
                    kept.copy()
        self._changing |= changing
        try:
            yield
        finally:
            self._changing -= changing

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        args = [_ordinary(value) for value in args]
        if kwargs:
            kwargs = {key: _ordinary(value) for key, value in kwargs.items()}
        if "out" in kwargs and func in INTO_GIVEN and _needs_gradient([*args, kwargs["out"]]):
            given = kwargs.pop("out")
            result = func(*args, **kwargs)
            with self._change([given]):
                return given.copy_(result)
        if isinstance(func, torch._ops.OpOverloadPacket) and _needs_gradient(args) and (instead := self._instead(func)):
            with self:
                return instead(*args, **kwargs)
        if "out" in kwargs or _is_in_place(name) or kwargs.get("inplace"):
            changed = kwargs.get("out", args[0] if args else None)
            with self._change(changed if isinstance(changed, list | tuple) else [changed]):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _ordinary(value: Any) -> Any:
    """`value`, with ordinary tensors for inference tensors, in lists too."""
    if isinstance(value, Tensor):
        return ordinary(value) if value.is_inference() else value
    if isinstance(value, list | tuple) and any(isinstance(each, Tensor) and each.is_inference() for each in value):
        return type(value)(map(_ordinary, value))
    return value
